//! What a second swap writes, when nothing was touched and when a hundredth was.

use praas_runtime::swap::{Committed, ProcessImage, SwapConfig, swap_out_on};
use praas_transport::Buf;
use serde::Serialize;

use super::content::Content;
use super::place::Place;
use super::table::{Row, mib};
use super::{ms, timed};
use crate::bench::{BenchError, machine::commit};

/// Objects that the bytes are in, by turns.
const OBJECTS: [usize; 2] = [1, 1000];

/// One line of results.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    bench: &'static str,
    /// `second`.
    part: &'static str,
    storage: &'static str,
    data: &'static str,
    /// Of state.
    bytes: usize,
    objects: usize,
    /// Bytes that were written anew since the first swap.
    touched_bytes: usize,
    /// Bytes that the swap has written, and how many of them are the manifest's.
    written_bytes: u64,
    manifest_bytes: u64,
    chunks_written: u64,
    /// Milliseconds that it took.
    ms: f64,
    commit: &'static str,
}

/// A first swap, and those after it.
pub(super) fn measure(
    place: &mut Place,
    data: Content,
    bytes: usize,
) -> Result<Vec<Record>, BenchError> {
    let config = SwapConfig::default();
    let mut records = Vec::new();
    for objects in OBJECTS {
        let mut image = data.image(bytes, objects);
        let storage = place.storage()?;
        let mut base = None;
        swap_out_on(&*storage, &image, &config, &mut base)?;
        let mut manifest_bytes = 0;
        for touched in [0, bytes / 100] {
            touch(&mut image, touched);
            let again = timed(|| swap_out_on(&*storage, &image, &config, &mut base));
            let (time, committed): (_, Committed) = again?;
            if touched == 0 {
                manifest_bytes = committed.bytes;
            }
            records.push(Record {
                bench: "swap",
                part: "second",
                storage: place.kind().name(),
                data: data.name(),
                bytes,
                objects: image.state.len(),
                touched_bytes: touched,
                written_bytes: committed.bytes,
                manifest_bytes,
                chunks_written: committed.chunks_written,
                ms: ms(time),
                commit: commit(),
            });
        }
        place.clear()?;
    }
    Ok(records)
}

/// Changes the first bytes of the state, in objects of new versions.
fn touch(image: &mut ProcessImage, bytes: usize) {
    let mut left = bytes;
    let newest = image.state.len() as u64;
    for (_, buf, meta) in &mut image.state {
        if left == 0 {
            return;
        }
        let touched = left.min(buf.len());
        let mut bytes = buf.to_vec();
        for byte in &mut bytes[..touched] {
            *byte ^= 0x5a;
        }
        meta.version += newest;
        *buf = Buf::from_vec(bytes);
        left -= touched;
    }
}

impl Row for Record {
    fn head() -> String {
        format!(
            "\n{:<6}{:<8}{:>9}{:>9}{:>13}{:>13}{:>14}{:>8}{:>10}\n",
            "place",
            "data",
            "MiB",
            "objects",
            "touched, B",
            "written, B",
            "manifest, B",
            "chunks",
            "ms"
        )
    }

    fn row(&self) -> String {
        format!(
            "{:<6}{:<8}{:>9.1}{:>9}{:>13}{:>13}{:>14}{:>8}{:>10.2}\n",
            self.storage,
            self.data,
            mib(self.bytes as u64),
            self.objects,
            self.touched_bytes,
            self.written_bytes,
            self.manifest_bytes,
            self.chunks_written,
            self.ms,
        )
    }
}
