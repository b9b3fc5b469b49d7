//! What is swapped.

use praas_runtime::mailbox::MailboxImage;
use praas_runtime::state::ObjectMeta;
use praas_runtime::swap::{ImageKind, ProcessImage};
use praas_transport::Buf;

pub(super) use crate::bench::peer::{APPLICATION, INCARNATION, PROCESS};

/// What the bytes of a state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Content {
    /// Bytes that do not compress.
    Random,
    /// Bytes of which half compresses away.
    Half,
}

impl Content {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Half => "half",
        }
    }

    /// So many bytes, none of which are those of another seed.
    pub(super) fn bytes(self, bytes: usize, seed: u64) -> Vec<u8> {
        let mut content = vec![0; bytes];
        let mut random = fastrand::Rng::with_seed(seed);
        match self {
            Self::Random => random.fill(&mut content),
            Self::Half => {
                for piece in content.chunks_mut(64) {
                    let (known, unknown) = piece.split_at_mut(piece.len() / 2);
                    known.fill(7);
                    random.fill(unknown);
                }
            }
        }
        content
    }

    /// A process with so many bytes of state, in objects of about the same length.
    pub(super) fn image(self, bytes: usize, objects: usize) -> ProcessImage {
        let objects = objects.clamp(1, bytes.max(1));
        let length = |at: usize| (at + 1) * bytes / objects - at * bytes / objects;
        let state = (0..objects).map(|at| {
            let meta = ObjectMeta {
                version: at as u64 + 1,
                written_unix_ms: 0,
                bytes: length(at) as u64,
            };
            let content = self.bytes(length(at), at as u64 + 1);
            (format!("object {at:06}"), Buf::from_vec(content), meta)
        });
        ProcessImage {
            application: APPLICATION.into(),
            process: PROCESS.into(),
            incarnation: INCARNATION,
            kind: ImageKind::Final,
            state_version: u64::from(u32::MAX),
            state: state.collect(),
            mailbox: MailboxImage::default(),
            sessions: Vec::new(),
            files: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_all_of_the_bytes() {
        for (bytes, objects) in [(1, 1), (10, 3), (1000, 1000), (1 << 20, 7), (3, 10)] {
            let image = Content::Half.image(bytes, objects);
            let lengths: usize = image.state.iter().map(|(_, buf, _)| buf.len()).sum();
            assert_eq!(lengths, bytes);
            assert_eq!(image.state.len(), objects.min(bytes));
        }
    }
}
