//! Where objects are kept, as settings say it: a URL without secrets.
//!
//! ```text
//!   file:/shared/praas          a folder; just its absolute path says the same
//!   <scheme>://<authority>/<path>?<option>=<value>&...
//! ```

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DirStorage, Storage, StorageError};

/// Bytes that a URL may have.
pub const URL_MAX_BYTES: usize = 8192;

/// A storage's URL. It holds no secret, so it may be shown and logged: one with a password is
/// refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorageUrl {
    scheme: String,
    authority: String,
    path: PathBuf,
    options: Vec<(String, String)>,
}

/// A text that is no storage's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url} is no URL of a storage: {what}")]
pub struct StorageUrlError {
    url: String,
    what: String,
}

impl StorageUrl {
    /// A folder.
    pub fn file(path: &Path) -> Self {
        Self {
            scheme: "file".into(),
            authority: String::new(),
            path: path.into(),
            options: Vec::new(),
        }
    }

    /// What kind of storage it is, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// A server, or whatever else stands between `//` and the path.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path, with the `/` that it begins with; empty if there is none.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        let mut options = self.options.iter();
        let (_, value) = options.find(|(option, _)| option == name)?;
        Some(value)
    }

    /// Finds options that a kind of storage does not have.
    ///
    /// # Errors
    /// Names the first, and those that there are.
    pub fn options_check(&self, known: &[&str]) -> Result<(), StorageUrlError> {
        let mut options = self.options.iter();
        match options.find(|(name, _)| !known.contains(&&name[..])) {
            None => Ok(()),
            Some((name, _)) => Err(self.error(match known {
                [] => format!("there are no options, so no {name}"),
                _ => format!("there is no option {name}, but {}", known.join(", ")),
            })),
        }
    }

    /// That this cannot be a storage, and why.
    pub fn error(&self, what: impl Into<String>) -> StorageUrlError {
        StorageUrlError {
            url: self.to_string(),
            what: what.into(),
        }
    }
}

/// Opens a storage of a kind that needs no more than this crate: `file`.
///
/// # Errors
/// It is of another kind, or has options, or the folder cannot be made.
pub fn storage_open(url: &StorageUrl) -> Result<Arc<dyn Storage>, StorageError> {
    if url.scheme != "file" {
        return Err(url.error("only file: can be opened here").into());
    }
    url.options_check(&[])?;
    Ok(Arc::new(DirStorage::new(&url.path)?))
}

impl FromStr for StorageUrl {
    type Err = StorageUrlError;

    fn from_str(text: &str) -> Result<Self, StorageUrlError> {
        if text.starts_with('/') {
            return Ok(Self::file(Path::new(text)));
        }
        parse(text).map_err(|what| StorageUrlError {
            // A password may stand before an @, and is not for logs.
            url: match text.rsplit_once('@') {
                Some((_, rest)) => format!("'...@{}'", shorten(rest)),
                None => format!("'{}'", shorten(text)),
            },
            what,
        })
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

fn parse(text: &str) -> Result<StorageUrl, String> {
    if text.len() > URL_MAX_BYTES {
        return Err(format!("it is longer than {URL_MAX_BYTES} bytes"));
    }
    let (scheme, rest) = text
        .split_once(':')
        .ok_or("it is neither an absolute path nor a URL")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if scheme.is_empty() || !scheme.bytes().all(plain) {
        return Err("what comes before the ':' is no scheme".into());
    }
    if rest.contains('#') {
        return Err("it has a fragment ('#')".into());
    }
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, query),
        None => (rest, ""),
    };
    let (authority, path) = match rest.strip_prefix("//") {
        None => ("", rest),
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
    };
    if authority.contains('@') {
        return Err("it has a user or a password, which are not for URLs: docs/swap.md".into());
    }
    let scheme = scheme.to_ascii_lowercase();
    let path = decode(path)?;
    if scheme == "file" && (!authority.is_empty() || !path.starts_with(b"/")) {
        return Err("file: takes an absolute path".into());
    }
    if scheme != "file" && !path.is_empty() && !path.starts_with(b"/") {
        return Err("a server is named after //, and its path begins with /".into());
    }
    let mut options: Vec<(String, String)> = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| format!("option {option} has no value"))?;
        let value = String::from_utf8(decode(value)?)
            .map_err(|_| format!("option {name} is not in UTF-8"))?;
        if options.iter().any(|(other, _)| other == name) {
            return Err(format!("option {name} is there twice"));
        }
        options.push((name.into(), value));
    }
    Ok(StorageUrl {
        scheme,
        authority: authority.into(),
        path: OsStr::from_bytes(&path).into(),
        options,
    })
}

/// Takes `%` and two hexadecimal digits for the byte that they are.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let [first, rest @ ..] = left {
        left = rest;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| char::from(*rest.get(at).unwrap_or(&b' ')).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err("a '%' is not followed by two hexadecimal digits".into());
        };
        bytes.push((high * 16 + low) as u8);
        left = &rest[2..];
    }
    Ok(bytes)
}

fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(f, "{}", char::from(*byte))?,
            b'/' | b'.' | b'_' | b'-' | b'~' | b':' | b',' => write!(f, "{}", char::from(*byte))?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        let path = self.path.as_os_str().as_bytes();
        // What begins with // itself would be taken for a server's name.
        if self.scheme != "file" || path.starts_with(b"//") {
            write!(f, "//{}", self.authority)?;
        }
        encode(f, path)?;
        for (at, (name, value)) in self.options.iter().enumerate() {
            write!(f, "{}{name}=", if at == 0 { '?' } else { '&' })?;
            encode(f, value.as_bytes())?;
        }
        Ok(())
    }
}

impl TryFrom<String> for StorageUrl {
    type Error = StorageUrlError;

    fn try_from(text: String) -> Result<Self, StorageUrlError> {
        text.parse()
    }
}

impl From<StorageUrl> for String {
    fn from(url: StorageUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> StorageUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_folder_is_named_by_its_path_or_a_url() {
        for text in ["/a b/%", "file:/a%20b/%25", "FILE:///a%20b/%25"] {
            assert_eq!(url(text), StorageUrl::file(Path::new("/a b/%")));
            assert_eq!(url(text).to_string(), "file:/a%20b/%25");
        }
        assert_eq!(url("//a").to_string(), "file:////a");
        assert_eq!(url("file:////a"), url("//a"));
        let raw = StorageUrl::file(Path::new(OsStr::from_bytes(b"/\xff")));
        assert_eq!(url(&raw.to_string()), raw);
    }

    #[test]
    fn a_server_has_a_path_and_options() {
        let url = url("s3://bucket/a/b?endpoint=http://[::1]:9000&x=%26");
        assert_eq!((url.scheme(), url.authority()), ("s3", "bucket"));
        assert_eq!(url.path(), Path::new("/a/b"));
        assert_eq!(url.option("endpoint"), Some("http://[::1]:9000"));
        assert_eq!(url.option("x"), Some("&"));
        assert_eq!(url.options_check(&["endpoint", "x"]), Ok(()));
        let error = url.options_check(&["endpoint"]).unwrap_err().to_string();
        assert!(error.contains("there is no option x"), "{error}");
        let error = storage_open(&url).err().unwrap().to_string();
        assert!(error.contains("only file:"), "{error}");
    }

    #[test]
    fn what_is_no_url_says_why_and_no_password() {
        for (text, why) in [
            ("swap", "neither"),
            ("file:swap", "absolute"),
            ("file://host/swap", "absolute"),
            ("s3:b", "named after //"),
            ("s3://b/%4", "hexadecimal"),
            ("s3://b?a=1&a=2", "twice"),
            ("s3://b?a", "no value"),
            ("s3://b#f", "fragment"),
            ("redis://me:geheim@host/0", "password"),
        ] {
            let error = text.parse::<StorageUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("geheim"), "{error}");
        }
        let file = StorageUrl::file(Path::new("/proc/praas"));
        assert!(storage_open(&file).is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(text in "[a-z0-9:/?&=%@#. ä-]{0,60}") {
            if let Ok(url) = text.parse::<StorageUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }
    }
}
