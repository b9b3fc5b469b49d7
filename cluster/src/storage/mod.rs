//! The storages that settings can name, behind one trait: `praas_runtime::swap::Storage`.
//!
//! docs/storage.md says what each promises, and has their options. Kinds other than folders are
//! behind features, which are on unless somebody turns them off.

use std::sync::Arc;

use praas_runtime::swap::{Storage, StorageError, StorageUrl, StorageUrlError};

#[cfg(feature = "redis")]
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod s3_client;
#[cfg(feature = "s3")]
mod s3_http;

#[cfg(feature = "redis")]
#[cfg(feature = "redis")]
pub use self::redis::RedisStorage;
#[cfg(feature = "s3")]
pub use s3::S3Storage;

/// Opens a storage by its URL. Servers may be asked for the first time only when they are needed.
///
/// # Errors
/// The URL is of no kind that is known, or has options that the kind has not, or what it names
/// cannot be used.
pub fn storage_open(url: &StorageUrl) -> Result<Arc<dyn Storage>, StorageError> {
    match url.scheme() {
        "file" => praas_runtime::swap::storage_open(url),
        #[cfg(feature = "s3")]
        "s3" => Ok(Arc::new(S3Storage::new(url)?)),
        #[cfg(all(feature = "redis", feature = "tls"))]
        "rediss" => Ok(Arc::new(RedisStorage::new(url)?)),
        #[cfg(feature = "redis")]
        "redis" | "redis+unix" => Ok(Arc::new(RedisStorage::new(url)?)),
        other => {
            let kinds = [
                ("file", true),
                ("s3", cfg!(feature = "s3")),
                ("redis", cfg!(feature = "redis")),
                ("redis+unix", cfg!(feature = "redis")),
                ("rediss", cfg!(all(feature = "redis", feature = "tls"))),
            ];
            let built = kinds.iter().filter(|(_, built)| *built);
            let built: Vec<_> = built.map(|(kind, _)| *kind).collect();
            let built = built.join(", ");
            let what = format!("there is no storage of kind {other} in this build, but {built}");
            Err(url.error(what).into())
        }
    }
}

/// A number among a URL's options, or its default.
#[cfg(any(feature = "s3", feature = "redis"))]
fn number(
    url: &StorageUrl,
    name: &str,
    default: u64,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<u64, StorageUrlError> {
    let Some(text) = url.option(name) else {
        return Ok(default);
    };
    let number = text.parse().ok().filter(|number| allowed.contains(number));
    number.ok_or_else(|| {
        let (least, most) = allowed.into_inner();
        url.error(format!("{name} is {text}, not from {least} to {most}"))
    })
}

/// What a URL's path says that names begin with: empty, or with a `/` at its end.
#[cfg(feature = "s3")]
fn prefix(url: &StorageUrl) -> Result<String, StorageUrlError> {
    let path = url.path().to_str();
    let path = path.ok_or_else(|| url.error("its path is not in UTF-8"))?;
    Ok(match path.trim_matches('/') {
        "" => String::new(),
        path => format!("{path}/"),
    })
}

/// What marks one creation of an object, so that its outcome can be found out later: 128 random
/// bits.
#[cfg(any(feature = "s3", feature = "redis"))]
fn nonce() -> Result<String, StorageError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StorageError::Io {
        operation: "mark a creation",
        name: "random bytes".into(),
        source: std::io::Error::other(error),
    })?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

/// The bytes of several slices, handed out in pieces.
#[cfg(any(feature = "s3", feature = "redis"))]
struct Pieces<'a> {
    parts: std::slice::Iter<'a, &'a [u8]>,
    first: &'a [u8],
    left: u64,
}

#[cfg(any(feature = "s3", feature = "redis"))]
impl<'a> Pieces<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Self {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            parts: parts.iter(),
            first: &[],
            left,
        }
    }

    /// The next bytes where they are, `most` of them unless they are the last; none after those.
    fn next(&mut self, most: usize) -> Vec<&'a [u8]> {
        let mut bytes = (most as u64).min(self.left) as usize;
        self.left -= bytes as u64;
        let mut piece = Vec::new();
        while bytes > 0 {
            if self.first.is_empty() {
                let Some(next) = self.parts.next() else {
                    break;
                };
                self.first = next;
                continue;
            }
            let (now, later) = self.first.split_at(self.first.len().min(bytes));
            piece.push(now);
            bytes -= now.len();
            self.first = later;
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let error = storage_open(&url.parse().unwrap()).err().unwrap();
        error.to_string()
    }

    #[test]
    fn a_url_that_cannot_be_says_why() {
        assert!(refused("ftp://host/x").contains("no storage of kind ftp"));
        assert!(refused("file:/tmp?x=1").contains("no options"));
    }

    #[test]
    #[cfg(any(feature = "s3", feature = "redis"))]
    fn pieces_are_the_parts_again() {
        let parts: [&[u8]; 4] = [b"abc", b"", b"defgh", b"i"];
        for most in 1..11 {
            let mut pieces = Pieces::new(&parts);
            let next = || Some(pieces.next(most).concat()).filter(|piece| !piece.is_empty());
            let all: Vec<_> = std::iter::from_fn(next).collect();
            assert_eq!(all.concat(), b"abcdefghi");
            assert!(all[..all.len() - 1].iter().all(|piece| piece.len() == most));
            assert_eq!(pieces.left, 0);
        }
        assert!(Pieces::new(&[]).next(5).is_empty());
    }
}
