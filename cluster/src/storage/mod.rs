//! The storages that settings can name, behind one trait: `praas_runtime::swap::Storage`.

use std::sync::Arc;

use praas_runtime::swap::{Storage, StorageError, StorageUrl};

/// Opens a storage by its URL.
///
/// # Errors
/// The URL is of no kind that is known, or has options that the kind has not, or what it names
/// cannot be used.
pub fn storage_open(url: &StorageUrl) -> Result<Arc<dyn Storage>, StorageError> {
    match url.scheme() {
        "file" => praas_runtime::swap::storage_open(url),
        other => Err(url
            .error(format!("there is no storage of kind {other}"))
            .into()),
    }
}
