//! Transfer: a process goes to another host while it serves, over the data plane.
//!
//! ```text
//!   target (incarnation N+1, serves nobody)             source (incarnation N, serves)
//!     | -- dials, as process of its name, N+1 ----------> |
//!     | -- Begin{token} --------------------------------> |  the control plane told both
//!     | <----------------- Entries, pieces ..., Round{1}  |  all objects, while it serves
//!     | -- Have{1} -------------------------------------> |
//!     | <----------------- Entries, pieces ..., Round{2}  |  what has changed since
//!     | -- Have{2} -------------------------------------> |  little is left: it freezes
//!     | <------- Entries, pieces ..., Deleted, mailbox,   |
//!     |          sessions, files, End                     |  from here on it does not thaw
//!     | -- Complete ------------------------------------> |  by itself
//! ```
//!
//! Neither side decides who is the process: the control plane does, once the target has all, in
//! one stored change. Both machines are without clock, thread and socket.

mod message;
mod ranges;
mod source;
mod target;
#[cfg(test)]
mod tests;

pub use self::message::{
    Entry, FromSource, FromTarget, Shape, WORD_HEADER, WORD_MAX_BYTES, What, piece_header, shape,
    word_decode, word_encode,
};
pub use self::source::{Notice, Objects, Out, Source, SourceCounts, SourceLimits, Step};
pub use self::target::{PullError, Target, TargetLimits, VOUCHED_MAX};

/// Active message of transfers.
pub const AM_TRANSFER: u8 = 7;

/// Reads arbitrary bytes as headers and words of either side, and lets a target hear them: what is
/// accepted reads the same once encoded.
#[doc(hidden)]
pub fn fuzz_transfer(bytes: &[u8]) {
    if let Some(Shape::Piece { offset }) = shape(bytes) {
        assert_eq!(piece_header(offset), bytes);
    }
    if let Ok(word) = word_decode::<FromTarget>(bytes) {
        let again = word_encode(&word).map(|bytes| word_decode(&bytes));
        assert_eq!(again, Ok(Ok(word)));
    }
    // Words one after the other, each behind its length; what is left over are pieces of the first
    // entries.
    let pool = praas_transport::BufPool::new(1 << 20);
    let limits = TargetLimits {
        state_max_bytes: 1 << 19,
        mailbox_messages_max: 16,
        mailbox_max_bytes: 1 << 19,
        files_max: 16,
        files_max_bytes: 1 << 19,
    };
    let mut target = Target::new(pool, limits);
    let mut rest = bytes;
    while let Some((len, tail)) = rest.split_first()
        && let Some((word, tail)) = tail.split_at_checked(usize::from(*len))
        && let Ok(word) = word_decode::<FromSource>(word)
    {
        rest = tail;
        if target.heard(word).is_err() {
            return;
        }
        let _ = target.says();
    }
    for (number, piece) in rest.chunks(16).enumerate() {
        let number = number as u64;
        if target.piece_room(number, 0, piece.len() as u64).is_ok() {
            drop(target.piece(number, 0, praas_transport::Buf::from_vec(piece.to_vec())));
        }
    }
    if target.is_complete() {
        drop(target.image("a", "p", praas_transport::Incarnation(1)));
    }
}

#[cfg(test)]
mod fuzzed {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_words_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_transfer(&bytes);
        }

        /// Small numbers make words that mean something.
        #[test]
        fn any_words_do_no_harm(words in proptest::collection::vec(
            proptest::collection::vec(0..5_u8, 1..12), 0..20)
        ) {
            let mut bytes = Vec::new();
            for word in words {
                bytes.push(word.len() as u8);
                bytes.extend(word);
            }
            fuzz_transfer(&bytes);
        }
    }
}
