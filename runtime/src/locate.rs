//! How a process asks a peer where a state object can be read: active message 6.
//!
//! ```text
//!   Locate    tag = the call   0     1      2       4           8
//!             user header:     kind  flags  status  zero        payload = key
//!   Located   tag = the call   kind  flags  status  zero        payload = version, place, bytes
//!   Bytes     tag = the call   kind  zero                       payload = the object's bytes
//! ```
//!
//! Located has as much as its flags say. An object that fits comes along at once, and where it can
//! be read next time; one that is asked for in whole, since it changes faster than it can be
//! read or since one-sided operations are messages, too, is not shown, and follows by itself in
//! Bytes, which is in order with it, unless it is short.

use praas_transport::RemoteKey;

use crate::invocation::Status;
use crate::state::{KEY_MAX_BYTES, Place};

/// Active message of reads of state.
pub const AM_STATE: u8 = 6;

/// Bytes of the user header of all messages here.
pub const LOCATE_HEADER_BYTES: usize = 8;

/// Objects up to this many bytes come with the answer that says where they are.
pub const LOCATED_INLINE_MAX_BYTES: usize = 1024;

/// Objects up to this many bytes come with the answer if their bytes are wanted with it; above it
/// they follow without another copy.
pub const LOCATED_WANTED_MAX_BYTES: usize = 16 << 10;

/// Bytes of a place.
pub const PLACE_BYTES: usize = 40;

/// In a Locate: the bytes are wanted with the answer, however many they are.
pub const LOCATE_BYTES: u8 = 1;
/// In a Located: the object's bytes are the rest of the payload.
pub const LOCATED_BYTES: u8 = 1;
/// In a Located: a place follows the version.
pub const LOCATED_PLACE: u8 = 2;
/// In a Located: the object's bytes follow in a message of their own.
pub const LOCATED_FOLLOWS: u8 = 4;
/// In a Located that says Quiescing: the process stays, and has the object soon.
pub const LOCATED_LATER: u8 = 8;

/// What a message on [`AM_STATE`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LocateKind {
    /// Asks where an object is.
    Locate = 1,
    /// Says where, or why not.
    Located = 2,
    /// The object itself.
    Bytes = 3,
}

/// The header of a message: kind, flags and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocateHeader {
    /// What it is.
    pub kind: LocateKind,
    /// By kind.
    pub flags: u8,
    /// How it went, in a Located: a [`crate::invocation::Status`].
    pub status: u16,
}

impl LocateHeader {
    /// Its bytes.
    pub fn encode(self) -> [u8; LOCATE_HEADER_BYTES] {
        let status = self.status.to_le_bytes();
        let Self { kind, flags, .. } = self;
        [kind as u8, flags, status[0], status[1], 0, 0, 0, 0]
    }

    /// Reads a header; `None` if it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [kind, flags, low, high, 0, 0, 0, 0] = *bytes else {
            return None;
        };
        let (kind, known) = match kind {
            1 => (LocateKind::Locate, LOCATE_BYTES),
            2 => {
                let known = LOCATED_BYTES | LOCATED_PLACE | LOCATED_FOLLOWS | LOCATED_LATER;
                (LocateKind::Located, known)
            }
            3 => (LocateKind::Bytes, 0),
            _ => return None,
        };
        let status = u16::from_le_bytes([low, high]);
        let later = flags & LOCATED_LATER == 0
            || (flags, status) == (LOCATED_LATER, Status::Quiescing as u16);
        let good = flags & !known == 0 && later && (status == 0 || kind == LocateKind::Located);
        good.then_some(Self {
            kind,
            flags,
            status,
        })
    }
}

/// The key of a Locate; `None` if it is none.
pub fn locate_key(payload: &[u8]) -> Option<&str> {
    let good = (1..=KEY_MAX_BYTES).contains(&payload.len());
    std::str::from_utf8(payload).ok().filter(|_| good)
}

/// What a Located says of an object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatedBody<'a> {
    /// The object's version; zero if there is none.
    pub version: u64,
    /// Where it can be read from now on.
    pub place: Option<Place>,
    /// The object, if it came along.
    pub bytes: Option<&'a [u8]>,
}

impl<'a> LocatedBody<'a> {
    /// The flags and the payload; those of an object whose bytes follow are given by the sender.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let mut payload = self.version.to_le_bytes().to_vec();
        let mut flags = 0;
        if let Some(place) = &self.place {
            flags |= LOCATED_PLACE;
            let Place {
                object,
                offset,
                len,
                words,
                word,
            } = place;
            for field in [object.0, *offset, *len, words.0, *word] {
                payload.extend_from_slice(&field.to_le_bytes());
            }
        }
        if let Some(bytes) = self.bytes {
            flags |= LOCATED_BYTES;
            payload.extend_from_slice(bytes);
        }
        (flags, payload)
    }

    /// Reads a payload; `None` if it is not what the flags say.
    pub fn decode(flags: u8, payload: &'a [u8]) -> Option<Self> {
        let (version, mut rest) = payload.split_first_chunk::<8>()?;
        let version = u64::from_le_bytes(*version);
        let mut place = None;
        if flags & LOCATED_PLACE != 0 {
            let (bytes, after) = rest.split_first_chunk::<PLACE_BYTES>()?;
            rest = after;
            place = Some(place_decode(bytes)?);
        }
        let bytes = match flags & (LOCATED_BYTES | LOCATED_FOLLOWS) {
            LOCATED_BYTES => Some(rest),
            0 | LOCATED_FOLLOWS if rest.is_empty() => None,
            _ => return None,
        };
        let absent = version == 0;
        let fits = match (&place, bytes) {
            (Some(place), Some(bytes)) => place.len == bytes.len() as u64,
            (None, None) => absent || flags & LOCATED_FOLLOWS != 0,
            _ => true,
        };
        (fits && !(absent && flags != 0)).then_some(Self {
            version,
            place,
            bytes,
        })
    }
}

fn place_decode(bytes: &[u8; PLACE_BYTES]) -> Option<Place> {
    let (fields, _) = bytes.as_chunks::<8>();
    let field = |at: usize| fields.get(at).map(|field| u64::from_le_bytes(*field));
    let place = Place {
        object: RemoteKey(field(0)?),
        offset: field(1)?,
        len: field(2)?,
        words: RemoteKey(field(3)?),
        word: field(4)?,
    };
    let good = place.word.is_multiple_of(8) && place.offset.checked_add(place.len).is_some();
    good.then_some(place)
}

/// The body of the fuzz target `locate`: header and payload of a message.
#[doc(hidden)]
pub fn fuzz_locate(bytes: &[u8]) {
    let Some((header, payload)) = bytes.split_at_checked(LOCATE_HEADER_BYTES) else {
        return;
    };
    let Some(read) = LocateHeader::decode(header) else {
        return;
    };
    assert_eq!(read.encode(), header);
    match read.kind {
        LocateKind::Locate => {
            if let Some(key) = locate_key(payload) {
                assert_eq!(key.as_bytes(), payload);
            }
        }
        LocateKind::Located => {
            if let Some(body) = LocatedBody::decode(read.flags, payload) {
                let (flags, encoded) = body.encode();
                assert_eq!(flags, read.flags & !LOCATED_FOLLOWS);
                assert_eq!(encoded, payload);
            }
        }
        LocateKind::Bytes => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = Place> {
        let words = (any::<u64>(), any::<u64>(), 0..1_u64 << 40);
        (words, 0..64_u64, 0..4096_u64).prop_map(|((object, words, offset), len, word)| Place {
            object: RemoteKey(object),
            offset,
            len,
            words: RemoteKey(words),
            word: word * 8,
        })
    }

    proptest! {
        #[test]
        fn what_is_located_is_what_was_said(
            version in 1..u64::MAX,
            place in proptest::option::of(place()),
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            inline in any::<bool>(),
        ) {
            let place = place.map(|place| match inline {
                true => Place { len: bytes.len() as u64, ..place },
                false => place,
            });
            let inline = inline.then_some(&bytes[..]);
            let body = LocatedBody { version, place, bytes: inline };
            let (flags, payload) = body.encode();
            let good = place.is_some() || inline.is_some();
            prop_assert_eq!(LocatedBody::decode(flags, &payload), good.then_some(body));
            if place.is_some() && inline.is_some() {
                let longer = [&payload[..], &[0]].concat();
                prop_assert_eq!(LocatedBody::decode(flags, &longer), None);
            }
        }

        #[test]
        fn anything_else_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            fuzz_locate(&bytes);
        }

        #[test]
        fn near_misses_are_errors(
            kind in 1..4_u8,
            flags in 0..8_u8,
            bytes in proptest::collection::vec(any::<u8>(), 0..96),
        ) {
            let header = [kind, flags, 0, 0, 0, 0, 0, 0];
            fuzz_locate(&[&header[..], &bytes].concat());
        }
    }

    #[test]
    fn an_absent_object_has_no_place() {
        let absent = LocatedBody {
            version: 0,
            place: None,
            bytes: None,
        };
        let (flags, payload) = absent.encode();
        assert_eq!(LocatedBody::decode(flags, &payload), Some(absent));
        assert_eq!(LocatedBody::decode(LOCATED_BYTES, &payload), None);
        assert_eq!(LocatedBody::decode(0, &1_u64.to_le_bytes()), None);
        assert_eq!((locate_key(b""), locate_key(&[b'k'; 256])), (None, None));
    }
}
