//! The bytes on storage, of this version and of older ones.

use super::*;

/// The bytes on storage are pinned: `PRAAS_BLESS=1` rewrites the files after a change of format.
#[test]
fn golden_files_are_what_is_written_and_read() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/swap");
    let written = MemStorage::default();
    commit(&written, &image(3, 7));
    if std::env::var_os("PRAAS_BLESS").is_some() {
        std::fs::create_dir_all(golden).unwrap();
        for (name, bytes) in written.objects.lock().unwrap().iter() {
            let component = name.rsplit('/').next().unwrap();
            std::fs::write(format!("{golden}/{component}"), bytes).unwrap();
        }
    }
    let stored = golden_read(golden);
    assert_eq!(
        *written.objects.lock().unwrap(),
        *stored.objects.lock().unwrap()
    );
    assert_eq!(loaded(&stored).image, image(3, 7));
}

fn golden_read(folder: &str) -> MemStorage {
    let stored = MemStorage::default();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("app/k%2F1/{}", entry.file_name().to_str().unwrap());
        stored.insert(name, std::fs::read(entry.path()).unwrap());
    }
    stored
}

/// Version 1 is no longer written, and its images are read as ever.
#[test]
fn golden_files_of_version_1_are_read() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/swap-1");
    let stored = golden_read(golden);
    let manifest = "app/k%2F1/manifest-0000000000000003-0000000000000001";
    stored.edit(manifest, |bytes| fuzz_manifest(bytes));
    let mut written = image(3, 7);
    written.state[0].1 = buf([7; 150]);
    written.files[0].bytes = buf([7; 70]);
    written.files[0].mode = FILE_MODE_DEFAULT;
    assert_eq!(loaded(&stored).image, written);
    stored.edit(manifest, |bytes| {
        bytes[10] = 1;
        seal(bytes);
    });
    let error = load(&stored).unwrap_err();
    let SwapError::NoneVerifies { rejected, .. } = error else {
        panic!("{error}")
    };
    assert!(rejected[0].to_string().ends_with("malformed: flags"));
}

/// Neither is version 2: it does not say which version the state had.
#[test]
fn golden_files_of_version_2_are_read() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/swap-2");
    let stored = golden_read(golden);
    let manifest = "app/k%2F1/manifest-0000000000000003-0000000000000001";
    stored.edit(manifest, |bytes| fuzz_manifest(bytes));
    let mut written = image(3, 7);
    written.files[0].mode = FILE_MODE_DEFAULT;
    assert_eq!(loaded(&stored).image, written);
}

/// Nor is version 3: its files have no modes, and no names but in UTF-8.
#[test]
fn golden_files_of_version_3_are_read() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/swap-3");
    let stored = golden_read(golden);
    let manifest = "app/k%2F1/manifest-0000000000000003-0000000000000001";
    stored.edit(manifest, |bytes| fuzz_manifest(bytes));
    let mut written = image(3, 7);
    written.files[0].mode = FILE_MODE_DEFAULT;
    assert_eq!(loaded(&stored).image, written);
}
