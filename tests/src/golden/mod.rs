//! Golden files: the bytes of every format, one input a file, held against what the code writes.
//!
//! ```text
//!   what the code writes, cut into fields ----+
//!                                             +--> same?  else: which field, in which document
//!   tests/golden/<folder>/<file> -------------+
//! ```
//!
//! A folder that is named after a fuzz target seeds it, so its files are inputs of that target.
//! `PRAAS_BLESS=1 cargo test --workspace golden` (or `just bless`) rewrites the files after a change
//! that is meant; whoever does so changes the document and CHANGELOG.md with it.

mod trace;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use praas_runtime::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The environment variable that makes the tests write golden files instead of reading them.
pub const BLESS_ENV: &str = "PRAAS_BLESS";

/// A part of a golden file, for saying where it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name in the document.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Cuts bytes into fields of these widths; what is left over is the last field.
pub fn fields_cut(bytes: &[u8], widths: &[(&str, usize)]) -> Vec<Field> {
    let mut rest = bytes;
    let mut fields = Vec::new();
    for (name, width) in widths {
        let (field, after) = rest.split_at(rest.len().min(*width));
        rest = after;
        fields.push(Field {
            name: (*name).into(),
            bytes: field.into(),
        });
    }
    if !rest.is_empty() {
        fields.push(Field {
            name: "the rest".into(),
            bytes: rest.into(),
        });
    }
    fields
}

/// The fields of a value as the codec writes it, each named by its path in the value.
///
/// # Panics
/// The fields together are not what the codec writes.
pub fn fields_traced<T: Serialize>(value: &T) -> Vec<Field> {
    let fields = trace::trace(value);
    let together: Vec<u8> = fields
        .iter()
        .flat_map(|field| &field.bytes)
        .copied()
        .collect();
    let encoded = codec::encode(value).expect("a golden value has an encoding");
    assert_eq!(together, encoded, "the fields are not the encoding");
    fields
}

/// One folder of golden files.
#[derive(Debug)]
pub struct Golden {
    folder: PathBuf,
    doc: &'static str,
    files: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Golden {
    /// The folder below `tests/golden`, whose files `doc` describes.
    pub fn open(folder: &str, doc: &'static str) -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        Self {
            folder: golden.join(folder),
            doc,
            files: BTreeSet::new(),
            wrong: Vec::new(),
        }
    }

    /// Holds a file to what is written now. Differences are told by [`Golden::close`].
    pub fn hold(&mut self, file: &str, fields: &[Field]) {
        let bytes: Vec<u8> = fields
            .iter()
            .flat_map(|field| &field.bytes)
            .copied()
            .collect();
        let path = self.folder.join(file);
        self.files.insert(file.into());
        if std::env::var_os(BLESS_ENV).is_some() {
            std::fs::create_dir_all(&self.folder).expect("the folder can be made");
            std::fs::write(&path, &bytes).expect("the golden file can be written");
            return;
        }
        let shown = self.shown(file);
        match std::fs::read(&path) {
            Ok(golden) => {
                if let Some(difference) = difference(&golden, fields) {
                    self.wrong.push(format!("{shown}: {difference}"));
                }
            }
            Err(error) => self.wrong.push(format!("{shown}: {error}")),
        }
    }

    /// Holds a file to a value of the codec, which must come back from the golden bytes as it is.
    pub fn hold_value<T: Serialize + DeserializeOwned>(&mut self, file: &str, value: &T) {
        let fields = fields_traced(value);
        let bytes: Vec<u8> = fields
            .iter()
            .flat_map(|field| &field.bytes)
            .copied()
            .collect();
        let back: T = codec::decode(&bytes).expect("what was encoded is decoded");
        assert_eq!(
            codec::encode(&back),
            Ok(bytes),
            "{file}: decoding is not the inverse"
        );
        self.hold(file, &fields);
    }

    /// Tells all differences, and files that nothing is held to.
    ///
    /// # Panics
    /// There are any.
    pub fn close(mut self) {
        for entry in std::fs::read_dir(&self.folder).expect("the folder is there") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_string_lossy();
            if !self.files.contains(&*name) {
                let shown = self.shown(&name);
                self.wrong
                    .push(format!("{shown}: nothing is held to it: delete it"));
            }
        }
        assert!(
            self.wrong.is_empty(),
            "the format of {} is not what the golden files pin:\n  {}\nIf that is meant, it is a \
             new version of the format: change the document and CHANGELOG.md, and rewrite the \
             files by `just bless`. Else it is a mistake.",
            self.doc,
            self.wrong.join("\n  ")
        );
    }

    fn shown(&self, file: &str) -> String {
        let folder = self.folder.file_name().unwrap_or_default();
        format!("tests/golden/{}/{file}", folder.to_string_lossy())
    }
}

/// Where golden bytes and those of now part, in words; nothing if they do not.
fn difference(golden: &[u8], fields: &[Field]) -> Option<String> {
    let (mut start, mut places) = (0, Vec::new());
    for field in fields {
        let (now, end) = (&field.bytes, start + field.bytes.len());
        let before = golden.get(start..end.min(golden.len())).unwrap_or_default();
        if before != now {
            let (name, before, now) = (&field.name, hex(before), hex(now));
            places.push(format!(
                "field `{name}` (bytes {start} to {end}): golden {before}, now {now}"
            ));
        }
        start = end;
    }
    if start < golden.len() {
        places.push(format!("{} bytes more are golden", golden.len() - start));
    }
    // What comes after the first difference is as a rule only moved; but a length in front of
    // everything differs whatever else does.
    places.truncate(2);
    (!places.is_empty()).then(|| places.join("; "))
}

fn hex(bytes: &[u8]) -> String {
    match bytes {
        [] => "nothing".into(),
        bytes => bytes
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_its_field() {
        let fields = fields_cut(&[1, 2, 3, 4], &[("a", 1), ("b", 2)]);
        assert_eq!(fields[2].name, "the rest");
        assert_eq!(difference(&[1, 2, 3, 4], &fields), None);
        let text = difference(&[1, 2, 9, 4], &fields).unwrap();
        assert_eq!(text, "field `b` (bytes 1 to 3): golden 0209, now 0203");
        let text = difference(&[1, 2, 3], &fields).unwrap();
        assert!(text.contains("golden nothing, now 04"), "{text}");
        let text = difference(&[1, 2, 3, 4, 5], &fields).unwrap();
        assert_eq!(text, "1 bytes more are golden");
    }

    #[test]
    fn values_are_cut_into_paths() {
        #[derive(Serialize)]
        enum Kind {
            Point { x: u16, y: Option<u8> },
        }
        let value = (vec!["ab", "c"], Kind::Point { x: 300, y: Some(1) });
        let names: Vec<String> = fields_traced(&value)
            .into_iter()
            .map(|field| field.name)
            .collect();
        let expected = [
            "0.len",
            "0[0]",
            "0[1]",
            "1 Kind::Point",
            "1.x",
            "1.y?",
            "1.y",
        ];
        assert_eq!(names, expected);
    }
}
