//! The small secret files of a control plane: read, or made with mode 0600.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use praas_transport::Secret;

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
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(
        ".{:016x}",
        getrandom::u64().map_err(io::Error::other)?
    ));
    let temporary = Path::new(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::hard_link(temporary, path)
        });
    let removed = std::fs::remove_file(temporary);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => removed,
        Err(error) => Err(error),
        Ok(()) => removed,
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
