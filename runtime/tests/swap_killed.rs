//! A process that is killed at every step of its commits, life after life on the same storage.
//!
//! The test runs itself as a child, whose storage kills it (SIGKILL) before, amid or after the
//! n-th operation of a commit. Whatever is left, the next life begins from a whole generation; also
//! a life that has most of its state in storage only, and commits it without having read it.

mod alone;
mod deadly;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use alone::Keys;
use deadly::Deadly;
use praas_runtime::prelude::*;
use praas_runtime::process::Restore;
use praas_runtime::state::AbsentObjects;
use praas_runtime::swap::{
    DirStorage, Heir, ImageKind, Loaded, Storage, StorageError, SwapConfig, swap_in, swap_in_lazily,
};
use praas_transport::BufPool;
use rustix::process::Signal;

const OBJECTS: u64 = 8;
/// So many that a lazy swap-in leaves objects for later.
const OBJECT_BYTES: usize = 70_000;

const CONFIG: SwapConfig = SwapConfig {
    chunk_bytes: 4 << 10,
    pack_max_bytes: 48 << 10,
    compression: praas_runtime::swap::Compression::Lz4,
    zstd_level: 3,
    threads: 1,
    pack_live_min_percent: 50,
    small_packs_max: 4,
};

/// What is never read is never written anew.
const LAZY: SwapConfig = SwapConfig {
    pack_live_min_percent: 0,
    small_packs_max: 1000,
    ..CONFIG
};

/// What an object is after the round in which it was written last.
fn content(round: u64) -> Vec<u8> {
    let mut bytes = vec![round as u8; OBJECT_BYTES];
    fastrand::Rng::with_seed(round).fill(&mut bytes[..OBJECT_BYTES / 2]);
    bytes
}

/// Writes one object, puts one message, takes one, and counts the round.
#[praas_runtime::function]
fn advance(context: &Context) -> Result<u64, FunctionError> {
    let round = context.state_load::<u64>("round")?.unwrap_or(0) + 1;
    context.state_put(&format!("object {}", round % OBJECTS), &content(round))?;
    context.message_put(context.process(), "k", &round.to_le_bytes())?;
    if round > 3 {
        context.message_try(None, "k")?;
    }
    context.state_store("round", &round)?;
    Ok(round)
}

praas_runtime::module!(static "tests", [advance]);

/// Storage of which packs are read only while the process begins; whoever wants one later waits in
/// vain.
struct Silent {
    inner: DirStorage,
    begun: Mutex<bool>,
}

impl Storage for Silent {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.inner.put_new(name, parts)
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        self.inner.size(name)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        while *self.begun.lock().unwrap() {
            std::thread::park();
        }
        self.inner.read(name, offset, into)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.inner.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.inner.delete(name)
    }
}

const FOLDER: &str = "PRAAS_TEST_SWAP_FOLDER";
const KILL_AT: &str = "PRAAS_TEST_SWAP_KILL_AT";

/// The child: one life, with one round and one commit in which it dies.
#[test]
fn one_life() {
    let (Ok(folder), Ok(kill)) = (std::env::var(FOLDER), std::env::var(KILL_AT)) else {
        return;
    };
    let mut kill = kill.split(' ').map(|word| word.parse::<u64>().unwrap());
    let [at, amid, swaps, lazy] = [(); 4].map(|()| kill.next().unwrap());
    let storage = Deadly::new(&folder, at, amid == 1);
    let loaded = match lazy {
        0 => load(Path::new(&folder)).map(|loaded| (loaded, None)),
        _ => load_lazily(Path::new(&folder)),
    };
    let incarnation = loaded
        .as_ref()
        .map_or(0, |(loaded, _)| loaded.image.incarnation.0);
    let (base, restore) = match loaded {
        Some((Loaded { base, image, .. }, absent)) => {
            let restore = Restore {
                image,
                absent,
                base: None,
            };
            (Some(base), Some(restore))
        }
        None => (None, None),
    };
    let keys = Keys::new();
    let process = keys.start(incarnation + 1, module(), restore);
    if let Some(base) = base {
        process.base_set(base);
    }
    let mut client = keys.client(&process);
    let _: u64 = client.invoke_value("p", "advance", &()).unwrap();
    let (config, absent) = match lazy {
        0 => (CONFIG, 0),
        // All but the one that this round has written.
        _ => (LAZY, OBJECTS as usize - 1),
    };
    assert_eq!(process.state_absent(), absent);
    match swaps {
        0 => process.checkpoint(&storage, &config).unwrap(),
        _ => process.swap_out(&storage, &config).unwrap(),
    };
}

/// Loads what a process needs to serve; nothing more is to be had from storage then.
fn load_lazily(folder: &Path) -> Option<(Loaded, Option<AbsentObjects>)> {
    let silent = Arc::new(Silent {
        inner: DirStorage::new(folder).unwrap(),
        begun: Mutex::new(false),
    });
    let storage: Arc<dyn Storage> = Arc::clone(&silent) as _;
    // Nothing is written through, so it takes nothing from anybody.
    let heir = Heir {
        incarnation: praas_transport::Incarnation(u64::MAX),
        life: praas_transport::Incarnation(0),
    };
    let loaded = swap_in_lazily(&storage, &BufPool::new(1 << 24), ("app", "p"), heir, 1).unwrap();
    *silent.begun.lock().unwrap() = true;
    loaded
}

fn load(folder: &Path) -> Option<Loaded> {
    let storage = DirStorage::new(folder).unwrap();
    swap_in(&storage, &BufPool::new(1 << 24), "app", "p").unwrap()
}

/// The round that is stored; all else must be what it was then.
fn round_check(folder: &Path) -> u64 {
    let Some(Loaded { image, .. }) = load(folder) else {
        return 0;
    };
    let object = |key: &str| {
        let mut state = image.state.iter();
        state.find(|(name, ..)| name == key).map(|(_, buf, _)| buf)
    };
    let round = object("round").unwrap();
    let round: u64 = praas_runtime::codec::decode(round).unwrap();
    for written in round.saturating_sub(OBJECTS - 1).max(1)..=round {
        let found = object(&format!("object {}", written % OBJECTS)).unwrap();
        assert!(**found == content(written), "object of round {written}");
    }
    let messages = image.mailbox.messages.iter();
    let messages: Vec<u64> = messages
        .map(|message| u64::from_le_bytes((&*message.payload).try_into().unwrap()))
        .collect();
    let expected: Vec<u64> = (round.saturating_sub(2).max(1)..=round).collect();
    assert_eq!(messages, expected);
    round
}

#[test]
fn killed_at_every_step_it_goes_on_from_a_whole_generation() {
    let folder = tempfile::tempdir().unwrap();
    let life = |at: u64, amid: u64, swaps: u64, lazy: u64| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_life", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(KILL_AT, format!("{at} {amid} {swaps} {lazy}"))
            .output()
            .unwrap();
        let killed = output.status.signal() == Some(Signal::KILL.as_raw());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(killed || output.status.success(), "{text}");
        killed
    };
    let (mut round, mut kept, mut lost) = (0, 0, 0);
    let eager = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(swaps, amid)| (swaps, amid, 0));
    for (swaps, amid, lazy) in eager.into_iter().chain([(0, 0, 1), (1, 1, 1)]) {
        for at in 0.. {
            let killed = life(at, amid, swaps, lazy);
            let now = round_check(folder.path());
            match killed {
                true if now == round => lost += 1,
                true => kept += 1,
                false => assert_eq!(now, round + 1),
            }
            assert!(now == round || now == round + 1, "{now} after {round}");
            round = now;
            if !killed {
                let kind = load(folder.path()).unwrap().image.kind;
                assert_eq!(kind == ImageKind::Final, swaps == 1);
                assert!(at > 5, "{at} operations are no commit");
                break;
            }
        }
    }
    assert!(lost > 12 && kept > 8, "{lost} lost, {kept} kept");
    let entries = std::fs::read_dir(folder.path().join("app/p")).unwrap();
    assert!(entries.count() < 90);
}
