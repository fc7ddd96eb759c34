//! Opens HTML pages from the file system in a headless Chromium, inspects them with JavaScript, and operates them by
//! mouse and keys.
//!
//! If no Chromium is installed, [`Page::open`] prints one line and returns `None`, and the test returns; with
//! `BASIC_BROWSER=required` in the environment it panics instead. `CHROME` names another binary.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use headless_chrome::browser::default_executable;
use headless_chrome::browser::tab::point::Point;
use headless_chrome::protocol::cdp::types::Event;
use headless_chrome::protocol::cdp::{Emulation, Network, Page as PageDomain, Runtime};
use headless_chrome::{Browser, LaunchOptions, Tab};
use serde_json::Value;

/// The time limit for a page or a browser that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a page has done that a working, self-contained page must not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Uncaught exceptions, and errors, warnings and failed assertions on the console.
    pub complaints: Vec<String>,
    /// URLs that the page requested, except itself and `data:` and `blob:` URLs.
    pub requests: Vec<String>,
}

/// A page in a browser of its own. By default the window has 1280 x 900 pixels and light colours.
pub struct Page {
    tab: Arc<Tab>,
    heard: Arc<Mutex<Heard>>,
    // Must be dropped last, because dropping it ends the browser.
    _browser: Browser,
}

/// The browser's binary. If there is none and none is required, prints one line and returns `None`.
fn chromium() -> Option<PathBuf> {
    let required = std::env::var("BASIC_BROWSER").is_ok_and(|value| value == "required");
    match default_executable() {
        Ok(path) => Some(path),
        Err(reason) if required => panic!("BASIC_BROWSER=required, and there is no Chromium: {reason}"),
        Err(_) => {
            eprintln!("skipped: no Chromium is installed (BASIC_BROWSER=required makes this a failure)");
            None
        }
    }
}

/// Whether the user is root, for whom Chromium's sandbox does not start.
fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}

impl Page {
    /// Opens an HTML file from the file system and waits until it is loaded.
    ///
    /// # Panics
    ///
    /// If the browser does not start or the page does not load.
    #[track_caller]
    pub fn open(path: &Path) -> Option<Self> {
        let path = path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::visit(&address(&path))
    }

    /// Opens the page at a URL and waits until it is loaded.
    ///
    /// # Panics
    ///
    /// If the browser does not start or the page does not load.
    #[track_caller]
    pub fn visit(url: &str) -> Option<Self> {
        let binary = chromium()?;
        let options = LaunchOptions::default_builder()
            .path(Some(binary))
            .sandbox(!is_root())
            .window_size(Some((1280, 900)))
            .idle_browser_timeout(Duration::from_secs(600))
            // Containers have little shared memory. Desktop scroll bars would take space that those of a phone don't.
            .args(vec![OsStr::new("--disable-dev-shm-usage"), OsStr::new("--hide-scrollbars")])
            .build()
            .expect("the launch options are whole");
        let browser = Browser::new(options).unwrap_or_else(|e| panic!("Chromium does not start: {e}"));
        browser.set_default_timeout(PATIENCE);
        let tab = browser.new_tab().expect("the browser opens a tab");
        tab.set_default_timeout(PATIENCE);
        let heard = Arc::new(Mutex::new(Heard::default()));
        listen(&tab, &heard, url.into());
        let page = Self { tab, heard, _browser: browser };
        page.resize(1280, 900);
        page.tab.navigate_to(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        page.wait(&format!("location.href === {} && document.readyState === 'complete'", Value::from(url)));
        Some(page)
    }

    /// Evaluates a JavaScript expression whose value can be written as JSON.
    ///
    /// # Panics
    ///
    /// If the expression throws.
    #[track_caller]
    pub fn evaluate(&self, expression: &str) -> Value {
        let call = Runtime::Evaluate {
            expression: format!("JSON.stringify(({expression}) ?? null)"),
            return_by_value: Some(true),
            generate_preview: None,
            silent: Some(true),
            await_promise: Some(true),
            include_command_line_api: None,
            user_gesture: Some(true),
            object_group: None,
            context_id: None,
            throw_on_side_effect: None,
            timeout: None,
            disable_breaks: None,
            repl_mode: None,
            allow_unsafe_eval_blocked_by_csp: None,
            unique_context_id: None,
            serialization_options: None,
        };
        let answer = self.tab.call_method(call).unwrap_or_else(|e| panic!("{expression}: {e}"));
        if let Some(thrown) = answer.exception_details {
            panic!("{expression}: {thrown:?}");
        }
        let text = answer.result.value.and_then(|value| value.as_str().map(String::from));
        let text = text.unwrap_or_else(|| panic!("{expression} has no JSON form"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{expression}: {e}: {text}"))
    }

    /// Waits until a JavaScript expression is true.
    ///
    /// # Panics
    ///
    /// If it does not become true in time.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        let start = Instant::now();
        while self.evaluate(&format!("!!({expression})")) != Value::Bool(true) {
            assert!(start.elapsed() < PATIENCE, "not true within {PATIENCE:?}: {expression}");
            sleep(Duration::from_millis(20));
        }
    }

    /// The visible text of the first element that a selector finds.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let found = self.evaluate(&format!("document.querySelector({}).innerText", Value::from(selector)));
        found.as_str().unwrap_or_else(|| panic!("{selector} has no text")).to_string()
    }

    /// Presses a key ("ArrowRight", "Tab", "a") on the focused element.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.tab.press_key(key).unwrap_or_else(|e| panic!("{key}: {e}"));
    }

    /// Moves the mouse to the middle of the first element that a selector finds, which is scrolled into view.
    #[track_caller]
    pub fn hover(&self, selector: &str) {
        let at = self.middle(selector);
        self.tab.move_mouse_to_point(at).unwrap_or_else(|e| panic!("{selector}: {e}"));
    }

    /// Clicks on the middle of the first element that a selector finds.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let at = self.middle(selector);
        self.tab.click_point(at).unwrap_or_else(|e| panic!("{selector}: {e}"));
    }

    #[track_caller]
    fn middle(&self, selector: &str) -> Point {
        let script = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{block: 'center', behavior: 'instant'}}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()",
            Value::from(selector)
        );
        let at = self.evaluate(&script);
        let number = |index: usize| at[index].as_f64().unwrap_or_else(|| panic!("{selector} has a place"));
        Point { x: number(0), y: number(1) }
    }

    /// Sets the size of the window in CSS pixels.
    #[track_caller]
    pub fn resize(&self, width: u32, height: u32) {
        self.metrics(width, height, 1.0);
    }

    fn metrics(&self, width: u32, height: u32, scale: f64) {
        let call = Emulation::SetDeviceMetricsOverride {
            width,
            height,
            device_scale_factor: scale,
            mobile: false,
            scale: None,
            screen_width: None,
            screen_height: None,
            position_x: None,
            position_y: None,
            dont_set_visible_size: None,
            screen_orientation: None,
            viewport: None,
            display_feature: None,
            device_posture: None,
        };
        self.tab.call_method(call).expect("the window can be resized");
    }

    /// Sets the preferred colour scheme: "light" or "dark".
    #[track_caller]
    pub fn prefer(&self, scheme: &str) {
        let feature = Emulation::MediaFeature { name: "prefers-color-scheme".into(), value: scheme.into() };
        let call = Emulation::SetEmulatedMedia { media: None, features: Some(vec![feature]) };
        self.tab.call_method(call).expect("the colour scheme can be chosen");
    }

    /// Whether the page is wider than the window and scrolls sideways.
    #[track_caller]
    pub fn scrolls_sideways(&self) -> bool {
        self.evaluate("document.documentElement.scrollWidth > window.innerWidth") == Value::Bool(true)
    }

    /// Saves a screenshot of the window as PNG, with `scale` device pixels per CSS pixel.
    #[track_caller]
    pub fn screenshot(&self, path: &Path, scale: f64) {
        let side =
            |name: &str| self.evaluate(name).as_u64().and_then(|n| u32::try_from(n).ok()).expect("a window has sides");
        let (width, height) = (side("window.innerWidth"), side("window.innerHeight"));
        self.metrics(width, height, scale);
        let format = PageDomain::CaptureScreenshotFormatOption::Png;
        let png = self.tab.capture_screenshot(format, None, None, true).expect("the page can be photographed");
        self.metrics(width, height, 1.0);
        std::fs::write(path, png).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// The complaints and requests so far, after a short wait for pending ones.
    pub fn heard(&self) -> Heard {
        // Waits for a round trip behind earlier events, and for the time until a request is reported.
        self.evaluate("new Promise(done => setTimeout(() => done(1), 150))");
        self.heard.lock().map(|heard| heard.clone()).unwrap_or_default()
    }

    /// Asserts that there are no complaints and no requests.
    ///
    /// # Panics
    ///
    /// If there are any, with a list of them.
    #[track_caller]
    pub fn assert_quiet(&self) {
        assert_eq!(self.heard(), Heard::default());
    }
}

/// The `file:` URL of a path.
fn address(path: &Path) -> String {
    use std::fmt::Write as _;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    bytes.fold(String::from("file://"), |mut url, byte| {
        if plain(*byte) {
            url.push(char::from(*byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
        url
    })
}

/// Records the page's complaints and requests.
fn listen(tab: &Arc<Tab>, heard: &Arc<Mutex<Heard>>, own: String) {
    let sink = Arc::clone(heard);
    let note = move |event: &Event| {
        let Ok(mut heard) = sink.lock() else { return };
        match event {
            Event::RuntimeConsoleAPICalled(event) => {
                let kind = format!("{:?}", event.params.Type).to_lowercase();
                if ["error", "warning", "assert"].contains(&kind.as_str()) {
                    heard.complaints.push(format!("console {kind}: {:?}", event.params.args));
                }
            }
            Event::RuntimeExceptionThrown(event) => {
                let details = &event.params.exception_details;
                let thrown = details.exception.as_ref().and_then(|thrown| thrown.description.clone());
                heard.complaints.push(format!("{} {}", details.text, thrown.unwrap_or_default()));
            }
            Event::LogEntryAdded(event) => heard.complaints.push(event.params.entry.text.clone()),
            Event::NetworkRequestWillBeSent(event) => {
                let url = &event.params.request.url;
                if *url != own && !url.starts_with("data:") && !url.starts_with("blob:") {
                    heard.requests.push(url.clone());
                }
            }
            _ => {}
        }
    };
    tab.add_event_listener(Arc::new(note)).expect("the tab takes listeners");
    tab.enable_runtime().and_then(|tab| tab.enable_log()).expect("the tab reports its console");
    let enable = Network::Enable {
        max_total_buffer_size: None,
        max_resource_buffer_size: None,
        max_post_data_size: None,
        report_direct_socket_traffic: None,
        enable_durable_messages: None,
    };
    tab.call_method(enable).expect("the tab reports its requests");
}
