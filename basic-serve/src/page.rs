//! The page at `/`.

use basic_eval::page::STYLE;

const HTML: &str = include_str!("page/page.html");
const OWN_STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str =
    concat!(include_str!("page/api.js"), "\n", include_str!("page/lens.js"), "\n", include_str!("page/chat.js"));

/// The whole page: it needs no other file.
pub(crate) fn html() -> String {
    HTML.replace("/* style */", &format!("{STYLE}\n{OWN_STYLE}")).replace("/* script */", SCRIPT)
}

#[cfg(test)]
mod tests {
    use super::html;

    #[test]
    fn the_page_is_whole_and_names_no_other_file() {
        let page = html();
        assert!(!page.contains("/* style */") && !page.contains("/* script */"));
        for mark in ["src=\"http", "href=\"http", "url(http", "@import", "import("] {
            assert!(!page.contains(mark), "{mark}");
        }
    }
}
