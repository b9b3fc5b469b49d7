//! Swapping out and in beside plain writing and reading of the same bytes to the same disk, and
//! what a second swap writes.
//!
//! `cargo bench -p praas-benches --bench swap [-- MIB [FOLDER [ROUNDS]]]`: 256 MiB below `target/`,
//! five rounds; with none, only what a second swap writes. Floor and subject alternate, and the medians of their times and of their ratio
//! over the rounds are told: the disk changes its mind from one second to the next. What is read
//! back comes from the page cache, for both.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use praas_runtime::mailbox::MailboxImage;
use praas_runtime::state::ObjectMeta;
use praas_runtime::swap::{
    Base, Committed, Compression, DirStorage, ImageKind, ProcessImage, SwapConfig, swap_in,
    swap_out_on,
};
use praas_transport::{Buf, BufPool, Incarnation};

/// What a plain writer hands to the kernel at once, as `dd bs=1M` does.
const BLOCK_BYTES: usize = 1 << 20;

/// Makes so many bytes.
type Make = fn(usize) -> Vec<u8>;

fn main() {
    // Cargo adds options of its own.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let number = |at: usize, default: usize| {
        let given = arguments.get(at).map(|word| word.parse());
        given.map_or(default, |number| number.expect("a number"))
    };
    let bytes = number(0, 256) << 20;
    let folder = arguments.get(1).map_or("target/swap-bench", |word| word);
    let rounds = number(2, 5);
    let folder = PathBuf::from(folder);
    fs::create_dir_all(&folder).expect("a folder that can be written");
    let contents: [(&str, Make); 2] = [("random", random), ("half random", half_random)];
    for (name, content) in contents {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            if rounds > 0 {
                out_and_in(&folder, name, &content(bytes), compression, rounds);
            }
        }
    }
    second_swaps(&folder, bytes);
    fs::remove_dir_all(&folder).expect("the folder can be removed");
}

/// Bytes that do not compress.
fn random(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    let mut random = 1_u64;
    for word in content.chunks_exact_mut(8) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        word.copy_from_slice(&(random ^ random >> 29).to_le_bytes());
    }
    content
}

/// Bytes of which half compresses away.
fn half_random(bytes: usize) -> Vec<u8> {
    let mut content = random(bytes);
    for page in content.chunks_exact_mut(64) {
        page[..32].fill(7);
    }
    content
}

fn image(objects: Vec<Vec<u8>>) -> ProcessImage {
    let state = objects.into_iter().enumerate().map(|(at, bytes)| {
        let meta = ObjectMeta {
            version: at as u64 + 1,
            written_unix_ms: 0,
            bytes: bytes.len() as u64,
        };
        (format!("object {at:04}"), Buf::from_vec(bytes), meta)
    });
    ProcessImage {
        application: "bench".into(),
        process: "p".into(),
        incarnation: Incarnation(1),
        kind: ImageKind::Final,
        state: state.collect(),
        mailbox: MailboxImage::default(),
        sessions: Vec::new(),
        files: Vec::new(),
    }
}

fn timed<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let result = act();
    (begun.elapsed(), result)
}

/// Writes bytes to a file and syncs it.
fn plain_write(path: &Path, content: &[u8]) {
    let mut file = File::create(path).expect("a file");
    for block in content.chunks(BLOCK_BYTES) {
        file.write_all(block).expect("the disk takes it");
    }
    file.sync_all().expect("the disk has it");
}

fn plain_read(path: &Path, into: &mut [u8]) {
    let mut file = File::open(path).expect("it was written");
    file.read_exact(into).expect("it is as long");
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// One line of figures: times of a floor and of what is beside it.
fn told(what: &str, bytes: usize, floors: &[Duration], subjects: &[Duration]) {
    let rate = |times: &[Duration]| {
        let rates = times
            .iter()
            .map(|time| bytes as f64 / time.as_secs_f64() / 1e6);
        median(rates.collect())
    };
    let pairs = floors.iter().zip(subjects);
    let ratios = pairs.map(|(floor, subject)| floor.as_secs_f64() / subject.as_secs_f64());
    let (floor, subject, ratio) = (rate(floors), rate(subjects), median(ratios.collect()));
    println!("{what:44} {subject:7.0} MB/s  plain {floor:7.0} MB/s  ratio {ratio:.2}");
}

fn out_and_in(folder: &Path, name: &str, content: &[u8], compression: Compression, rounds: usize) {
    let config = SwapConfig {
        compression,
        ..SwapConfig::default()
    };
    let image = image(vec![content.to_vec()]);
    let path = folder.join("plain");
    let root = folder.join("storage");
    let storage = DirStorage::new(&root).expect("a folder");
    let (mut floors, mut outs, mut reads, mut ins) = (vec![], vec![], vec![], vec![]);
    let mut into = vec![0; content.len()];
    let mut stored = 0;
    for _ in 0..rounds {
        floors.push(timed(|| plain_write(&path, content)).0);
        let (time, committed) = timed(|| commit(&storage, &image, &config, &mut None));
        outs.push(time);
        stored = committed.bytes;
        reads.push(timed(|| plain_read(&path, &mut into)).0);
        let pool = BufPool::new(content.len() * 2 + (64 << 20));
        let (time, loaded) = timed(|| swap_in(&storage, &pool, "bench", "p"));
        assert!(loaded.expect("it is whole").is_some());
        ins.push(time);
        fs::remove_file(&path).expect("it was there");
        fs::remove_dir_all(&root).expect("it was there");
    }
    let mode = format!("{name}, {compression:?}");
    told(&format!("out: {mode}"), content.len(), &floors, &outs);
    told(&format!("in:  {mode}"), content.len(), &reads, &ins);
    println!("{:44} {stored} bytes for {}", "", content.len());
}

fn commit(
    storage: &DirStorage,
    image: &ProcessImage,
    config: &SwapConfig,
    base: &mut Option<Base>,
) -> Committed {
    let committed = swap_out_on(storage, image, config, base).expect("the disk takes it");
    assert!(committed.untidy.is_none());
    committed
}

/// What a second swap writes after a hundredth was touched.
fn second_swaps(folder: &Path, bytes: usize) {
    let config = SwapConfig::default();
    let hundredth = bytes / 100;
    for (name, objects) in [("one object", 1), ("1000 objects", 1000)] {
        let root = folder.join("storage");
        let storage = DirStorage::new(&root).expect("a folder");
        let content = random(bytes / objects * objects);
        let objects: Vec<_> = content
            .chunks(bytes / objects)
            .map(<[u8]>::to_vec)
            .collect();
        let mut image = image(objects);
        let mut base = None;
        let (time, first) = timed(|| commit(&storage, &image, &config, &mut base));
        println!("{name}: first swap {} bytes, {time:.1?}", first.bytes);
        let (time, same) = timed(|| commit(&storage, &image, &config, &mut base));
        println!("{name}: nothing touched: {} bytes, {time:.1?}", same.bytes);
        let mut left = hundredth;
        let mut version = 1 << 20;
        for (_, buf, meta) in &mut image.state {
            let touched = left.min(buf.len());
            let mut bytes = buf.to_vec();
            for byte in &mut bytes[..touched] {
                *byte ^= 0x5a;
            }
            version += 1;
            (*buf, meta.version) = (Buf::from_vec(bytes), version);
            left -= touched;
            if left == 0 {
                break;
            }
        }
        let (time, second) = timed(|| commit(&storage, &image, &config, &mut base));
        println!(
            "{name}: {hundredth} bytes touched: {} bytes written, {} chunks, {time:.1?}",
            second.bytes, second.chunks_written
        );
        fs::remove_dir_all(&root).expect("it was there");
    }
}
