//! The directory: from a process's name to where it is, served by agents over the data plane.
//!
//! Requests and answers are typed values on [`crate::invocation::AM_DIRECTORY`], the tag tells
//! which answer is for which request.

use praas_transport::Address;
use praas_transport::wire::Incarnation;
use serde::{Deserialize, Serialize};

/// What a client or process asks of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryRequest {
    /// Where is a process of my application?
    Resolve {
        /// Its name.
        process: String,
        /// Allocate it, or swap it in, if it is not running.
        ensure: bool,
    },
}

/// What a directory answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryAnswer {
    /// It runs there.
    Resolved(Resolved),
    /// It does not run, and will not: why.
    Failed(String),
}

/// Where a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where it listens.
    pub addresses: Vec<Address>,
}

/// Reads arbitrary bytes as directory messages.
#[doc(hidden)]
pub fn fuzz_directory(bytes: &[u8]) {
    let _ = crate::codec::decode::<DirectoryRequest>(bytes);
    let _ = crate::codec::decode::<DirectoryAnswer>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_directory(&bytes);
        }
    }
}
