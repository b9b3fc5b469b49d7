//! Where the example's cdylib is.

use std::path::{Path, PathBuf};

use super::DemoError;

/// The path of the cdylib: beside the program, as when both are installed or built by name, or in
/// `deps/` there, where cargo builds what a program depends on. If it is in both, the newer one is
/// taken: cargo leaves the first as it is when it builds the second anew.
pub(super) fn module_find() -> Result<String, DemoError> {
    let program = std::env::current_exe()
        .map_err(|source| DemoError::system("find out which program this is", source))?;
    let here = program.parent().unwrap_or(Path::new("/"));
    let searched: Vec<PathBuf> = searched(here).collect();
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let found = searched.iter().filter(|path| path.is_file());
    let found = found.max_by_key(|path| changed(path));
    match found.and_then(|path| path.to_str()) {
        Some(path) => Ok(path.into()),
        None => Err(DemoError::Module { searched }),
    }
}

fn searched(here: &Path) -> impl Iterator<Item = PathBuf> {
    let name = format!(
        "{}praas_kmeans{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    [here.join(&name), here.join("deps").join(&name)].into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_places_are_named_where_there_is_none() {
        let searched = searched(Path::new("/nowhere")).collect();
        let text = DemoError::Module { searched }.to_string();
        assert!(text.contains("/nowhere/libpraas_kmeans.so, nor "), "{text}");
        assert!(text.contains("/nowhere/deps/libpraas_kmeans.so"), "{text}");
        assert!(text.contains("cargo build"), "{text}");
    }
}
