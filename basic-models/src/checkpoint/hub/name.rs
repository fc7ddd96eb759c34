//! Names of models on the hub.

/// `org/name` or `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubName {
    text: String,
    /// Bytes of `org/name`.
    repository: usize,
}

impl HubName {
    /// Reads a name: two parts of letters, digits, `-`, `_` and `.`, each beginning with a letter or digit, and after
    /// `@` a branch, a tag or a commit, whose parts between slashes are of the same form.
    pub fn parse(text: &str) -> Option<Self> {
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let known = repository.split('/').count() == 2 && repository.split('/').chain(revision.split('/')).all(part);
        known.then(|| Self { text: text.into(), repository: repository.len() })
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `org/name`
    pub fn repository(&self) -> &str {
        &self.text[..self.repository]
    }

    /// The branch, tag or commit; `main` if none is named.
    pub fn revision(&self) -> &str {
        self.text.get(self.repository + 1..).unwrap_or("main")
    }

    /// Whether the revision is a whole commit hash.
    pub fn is_commit(&self) -> bool {
        self.revision().len() == 40 && self.revision().chars().all(|c| c.is_ascii_hexdigit())
    }

    /// The folder's name in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}", self.repository().replace('/', "--"))
    }
}
