//! The small files of a control plane: secrets, of mode 0600, and where it listens.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use praas_transport::{Address, Secret};
use serde::{Deserialize, Serialize};

/// Bytes that a secret file may have.
const FILE_MAX_BYTES: u64 = 4096;

/// The cluster's secret from `path`, which is made if it is missing: 64 hexadecimal digits. Agents
/// that run under the same directory read it in the same way.
///
/// # Errors
/// The file cannot be read or made, others may read it, or it holds no secret.
pub fn cluster_secret_load(path: &Path) -> io::Result<Secret> {
    if let Some(text) = secret_read(path)? {
        let bytes = hex_decode(text.trim()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "not a secret of 64 hexadecimal digits",
            )
        })?;
        return Ok(Secret::from_bytes(bytes));
    }
    let secret = Secret::generate().map_err(io::Error::other)?;
    secret_write(path, &format!("{}\n", hex_encode(secret.as_bytes())))?;
    // Whoever was first with the name has made the secret; it may have been another.
    match secret_read(path)?.and_then(|text| hex_decode(text.trim())) {
        Some(bytes) => Ok(Secret::from_bytes(bytes)),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Where a control plane listens, as its file says: a JSON object. The file is there while the
/// control plane runs, and is left behind, stale, if it is killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlAddr {
    /// Where it serves HTTP, as a URL.
    pub http: String,
    /// Where agents dial; the best first.
    pub agents: Vec<Address>,
}

impl ControlAddr {
    /// Reads the file.
    ///
    /// # Errors
    /// There is none, which means that no control plane runs; or it holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        let file = File::open(path)?;
        file.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
        serde_json::from_str(&text).map_err(io::Error::from)
    }

    /// Replaces the file at once.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string(self)? + "\n";
        let temporary = temporary_write(path, &text)?;
        std::fs::rename(&temporary, path)
    }
}

/// The text of a secret file; `None` if there is no file.
pub(crate) fn secret_read(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        let text = format!(
            "mode {:03o} lets others at a secret: chmod 600",
            mode & 0o777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Makes a secret file that appears whole or not at all, and does not replace one that is there.
pub(crate) fn secret_write(path: &Path, text: &str) -> io::Result<()> {
    let temporary = temporary_write(path, text)?;
    let linked = std::fs::hard_link(&temporary, path);
    let removed = std::fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => removed,
        Err(error) => Err(error),
        Ok(()) => removed,
    }
}

/// The same, but replaces what is there.
pub(crate) fn secret_replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = temporary_write(path, text)?;
    std::fs::rename(&temporary, path)
}

/// A file of mode 0600 beside `path`, on disk.
fn temporary_write(path: &Path, text: &str) -> io::Result<PathBuf> {
    let mut temporary = path.as_os_str().to_owned();
    let number = getrandom::u64().map_err(io::Error::other)?;
    temporary.push(format!(".{number:016x}"));
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            // What counts is why it could not be written.
            let _ = std::fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex_encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

/// The 32 bytes that 64 hexadecimal digits stand for.
pub(crate) fn hex_decode(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.secret");
        let made = cluster_secret_load(&path).unwrap();
        assert_eq!(cluster_secret_load(&path).unwrap(), made);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = cluster_secret_load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        std::fs::remove_file(&path).unwrap();
        secret_write(&path, "nonsense").unwrap();
        assert!(cluster_secret_load(&path).is_err());
    }

    #[test]
    fn digits_come_back_as_bytes() {
        let bytes = std::array::from_fn(|i| i as u8 * 7);
        assert_eq!(hex_decode(&hex_encode(&bytes)), Some(bytes));
        assert_eq!(hex_decode(&"g".repeat(64)), None);
        assert_eq!(hex_decode("00"), None);
    }
}
