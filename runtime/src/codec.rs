//! The one encoding of typed values: serde through bincode, little-endian, with limits.
//!
//! Control messages, function arguments and swap manifests use it; bulk bytes never pass it. The
//! layout is bincode 2's standard one (variable-length integers), pinned by golden files.
#![expect(clippy::disallowed_methods, reason = "this is a codec, with limits")]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most bytes that decoding one value may claim, whatever lengths it announces.
pub const DECODE_MAX_BYTES: usize = 64 << 20;

/// What is encoded in fewer bytes may claim sixteen times them: one byte can stand for a `u128`,
/// and for nothing larger. So a short message cannot make us allocate much.
const DECODE_SMALL_BYTES: usize = 64 << 10;

/// Why a value could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value has no encoding.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// The bytes are no such value.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// Bytes are left over after the value.
    #[error("cannot decode: {0} bytes left over")]
    LeftOver(usize),
}

/// The bytes of a value.
///
/// # Errors
/// A type that serde cannot write without naming its fields.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|error| CodecError::Encode(error.to_string()))
}

/// The value that all of `bytes` stand for.
///
/// # Errors
/// Anything that [`encode`] would not have written for this type, and lengths above
/// [`DECODE_MAX_BYTES`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let decoded = match bytes.len() {
        0..=DECODE_SMALL_BYTES => {
            let config = bincode::config::standard().with_limit::<{ DECODE_SMALL_BYTES * 16 }>();
            bincode::serde::decode_from_slice(bytes, config)
        }
        _ => {
            let config = bincode::config::standard().with_limit::<DECODE_MAX_BYTES>();
            bincode::serde::decode_from_slice(bytes, config)
        }
    };
    whole(decoded, bytes)
}

/// As [`decode`], for values that refer to `bytes`: texts and bytes in them are not copied.
///
/// # Errors
/// As [`decode`].
pub fn decode_borrowed<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let decoded = match bytes.len() {
        0..=DECODE_SMALL_BYTES => {
            let config = bincode::config::standard().with_limit::<{ DECODE_SMALL_BYTES * 16 }>();
            bincode::serde::borrow_decode_from_slice(bytes, config)
        }
        _ => {
            let config = bincode::config::standard().with_limit::<DECODE_MAX_BYTES>();
            bincode::serde::borrow_decode_from_slice(bytes, config)
        }
    };
    whole(decoded, bytes)
}

/// What was decoded, if it was all of the bytes.
fn whole<T>(
    decoded: Result<(T, usize), bincode::error::DecodeError>,
    bytes: &[u8],
) -> Result<T, CodecError> {
    let (value, used) = decoded.map_err(|error| CodecError::Decode(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(CodecError::LeftOver(left)),
    }
}

/// For fields of bytes (`#[serde(with = "codec::bytes")]`): read and written as a whole, where a
/// list of bytes goes one by one. In the encoding of this module the two are the same.
pub(crate) mod bytes {
    use std::fmt;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(Bytes)
    }

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }
}

/// What [`fuzz_codec`] reads: every shape that serde has, but for types that hold themselves, for
/// which a decoder would need a limit on their depth: no message is one.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
enum Shapes {
    Unit,
    Numbers(bool, i16, u32, i64, u128, f32, f64, char),
    Texts {
        text: String,
        bytes: Vec<u8>,
        maybe: Option<Option<u8>>,
    },
    Lists(Vec<Vec<u64>>, std::collections::BTreeMap<String, i8>),
}

/// Reads arbitrary bytes as values: what is accepted reads the same once encoded. Besides, as
/// inputs of the functions that every process has.
#[doc(hidden)]
pub fn fuzz_codec(bytes: &[u8]) {
    if let Ok(value) = decode::<Shapes>(bytes) {
        let again = encode(&value).expect("a value that was decoded has an encoding");
        // Not by comparing the values: a float may be no number.
        let twice = decode::<Shapes>(&again).map(|value| encode(&value));
        assert_eq!(twice, Ok(Ok(again)));
    }
    crate::process::fuzz_inputs(bytes);
    let _ = decode::<crate::process::StateListInput>(bytes);
    let _ = decode::<crate::process::MessageTakeInput>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Value = (u64, String, Vec<Option<Vec<u8>>>);

    #[test]
    fn announced_lengths_are_not_believed() {
        let huge = encode(&(u64::MAX >> 8)).unwrap();
        assert!(matches!(
            decode::<Vec<u8>>(&huge),
            Err(CodecError::Decode(_))
        ));
        let mut megabytes = encode(&(2_u64 << 20)).unwrap();
        megabytes.resize(100, 0);
        let error = decode::<String>(&megabytes).unwrap_err();
        assert!(error.to_string().contains("LimitExceeded"), "{error}");
        assert_eq!(decode::<u8>(&[1, 2]), Err(CodecError::LeftOver(1)));
    }

    /// Whoever was built before bytes were written as a whole understands them still.
    #[test]
    fn bytes_as_a_whole_are_a_list_of_bytes() {
        let put = crate::process::StatePutInput {
            key: "k".into(),
            value: (0..=255).collect(),
        };
        let encoded = encode(&put).unwrap();
        assert_eq!(encoded, encode(&("k", &put.value)).unwrap());
        let (key, value) = decode::<(String, Vec<u8>)>(&encoded).unwrap();
        assert_eq!((key, value), (put.key, put.value));
    }

    proptest! {
        #[test]
        fn decoding_is_the_inverse_of_encoding(value: Value) {
            prop_assert_eq!(decode::<Value>(&encode(&value).unwrap()), Ok(value));
        }

        #[test]
        fn any_bytes_decode_or_err(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Value>(&bytes);
            fuzz_codec(&bytes);
        }
    }
}
