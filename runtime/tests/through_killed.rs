//! A process that is killed at every step of writing objects through, life after life on the same
//! storage: what was acknowledged is there, and what was not is as it was tried or as before.
//!
//! The test runs itself as a child, whose storage kills it (SIGKILL) before, amid or after the
//! n-th operation: of the start, of the first write and its checkpoint, of writes, deletions,
//! checkpoints and the swap.

mod alone;
mod deadly;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use alone::Keys;
use deadly::Deadly;
use praas_runtime::client::Client;
use praas_runtime::prelude::*;
use praas_runtime::process::{PersistTo, Restore};
use praas_runtime::swap::{
    Compression, DirStorage, Heir, Storage, SwapConfig, swap_in, swap_in_lazily,
};
use praas_transport::BufPool;
use praas_transport::wire::Incarnation;
use rustix::process::Signal;

const CONFIG: SwapConfig = SwapConfig {
    chunk_bytes: 4 << 10,
    pack_max_bytes: 16 << 10,
    compression: Compression::None,
    zstd_level: 3,
    threads: 1,
    pack_live_min_percent: 50,
    small_packs_max: 4,
};

/// Has what there is under a key written through, after it was written (or deleted: zero).
#[praas_runtime::function]
fn keeps(context: &Context, (key, value): (String, u64)) -> Result<u64, FunctionError> {
    match value {
        0 => drop(context.state_delete(&key)?),
        value => drop(context.state_store(&key, &value)?),
    }
    Ok(context.state_persist(&key)?)
}

/// Only writes.
#[praas_runtime::function]
fn puts(context: &Context, (key, value): (String, u64)) -> Result<(), FunctionError> {
    context.state_store(&key, &value)?;
    Ok(())
}

praas_runtime::module!(static "tests", [keeps, puts]);

const FOLDER: &str = "PRAAS_TEST_THROUGH_FOLDER";
const KILL_AT: &str = "PRAAS_TEST_THROUGH_KILL_AT";

/// What the child has tried and has been told, for the parent.
fn log(folder: &str, line: &str) {
    let path = format!("{folder}.log");
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn keep(client: &mut Client, folder: &str, key: &str, value: u64) {
    log(folder, &format!("try {key} {value}"));
    let input = (key.to_string(), value);
    let _: u64 = client.invoke_value("p", "keeps", &input).unwrap();
    log(folder, &format!("told {key} {value}"));
}

/// The child: one life, in which it dies.
#[test]
fn one_life() {
    let (Ok(folder), Ok(kill)) = (std::env::var(FOLDER), std::env::var(KILL_AT)) else {
        return;
    };
    let mut kill = kill.split(' ').map(|word| word.parse::<u64>().unwrap());
    let [at, amid, swaps, incarnation] = [(); 4].map(|()| kill.next().unwrap());
    let storage: Arc<dyn Storage> = Arc::new(Deadly::new(&folder, at, amid == 1));
    let persist = PersistTo {
        storage: Arc::clone(&storage),
        config: CONFIG,
        checkpointed: Box::new(|_| {}),
    };
    let keys = Keys::new();
    let process = keys.start_with(incarnation, module(), Some(persist), |pool| {
        let heir = Heir {
            incarnation: Incarnation(incarnation),
            life: Incarnation(0),
        };
        let lazy = [0, u64::MAX][incarnation as usize % 2];
        let loaded = swap_in_lazily(&storage, pool, ("app", "p"), heir, lazy).unwrap();
        loaded.map(|(loaded, absent)| Restore {
            image: loaded.image,
            absent,
            base: Some(loaded.base),
        })
    });
    let mut client = keys.client(&process);
    let value = incarnation * 10;
    keep(&mut client, &folder, "a", value + 1);
    keep(&mut client, &folder, "b", value + 1);
    let plain = ("plain".to_string(), value);
    let () = client.invoke_value("p", "puts", &plain).unwrap();
    keep(&mut client, &folder, "b", 0);
    process.checkpoint(&*storage, &CONFIG).unwrap();
    keep(&mut client, &folder, "a", value + 2);
    keep(&mut client, &folder, "b", value + 2);
    keep(&mut client, &folder, "a", value + 3);
    // Written and deleted, and in the next image so.
    log(&folder, &format!("try b {}", value + 3));
    let b = ("b".to_string(), value + 3);
    let () = client.invoke_value("p", "puts", &b).unwrap();
    match swaps {
        0 => process.checkpoint(&*storage, &CONFIG).unwrap(),
        _ => process.swap_out(&*storage, &CONFIG).unwrap(),
    };
    log(&folder, &format!("told b {}", value + 3));
}

/// What is stored under a key; zero for nothing.
fn stored(folder: &Path, key: &str) -> u64 {
    let storage = DirStorage::new(folder).unwrap();
    let Some(loaded) = swap_in(&storage, &BufPool::new(1 << 24), "app", "p").unwrap() else {
        return 0;
    };
    assert!(
        loaded
            .rejected
            .iter()
            .all(|rejected| rejected.name.contains("manifest-"))
    );
    let mut state = loaded.image.state.iter();
    let found = state.find(|(name, ..)| name == key);
    found.map_or(0, |(_, buf, _)| praas_runtime::codec::decode(buf).unwrap())
}

/// What a key may be, by what the child wrote: what it was told last, and what it tried since.
fn allowed(before: u64, log: &str, key: &str) -> Vec<u64> {
    let mut allowed = vec![before];
    for line in log.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if words[1] != key {
            continue;
        }
        let value = words[2].parse().unwrap();
        match words[0] {
            "told" => allowed = vec![value],
            _ => allowed.push(value),
        }
    }
    allowed
}

#[test]
fn killed_at_every_step_what_was_acknowledged_is_there() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("storage");
    let path = format!("{}.log", folder.display());
    let (mut incarnation, mut a, mut b, mut kills) = (0, 0, 0, 0);
    for (swaps, amid) in [(0, 0), (1, 1)] {
        for step in 0..u64::MAX {
            incarnation += 1;
            // Now and then one lives on: what the others leave does not add up.
            let spared = step % 4 == 3;
            let at = if spared {
                1 << 40
            } else {
                step / 4 * 3 + step % 4
            };
            std::fs::write(&path, b"").unwrap();
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "one_life", "--nocapture"])
                .env(FOLDER, &folder)
                .env(KILL_AT, format!("{at} {amid} {swaps} {incarnation}"))
                .output()
                .unwrap();
            let killed = output.status.signal() == Some(Signal::KILL.as_raw());
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(killed || output.status.success(), "{text}");
            let log = std::fs::read_to_string(&path).unwrap();
            let now = (stored(&folder, "a"), stored(&folder, "b"));
            let (a_may, b_may) = (allowed(a, &log, "a"), allowed(b, &log, "b"));
            assert!(
                a_may.contains(&now.0),
                "{at} {amid}: a is {now:?}, not {a_may:?}\n{log}"
            );
            assert!(
                b_may.contains(&now.1),
                "{at} {amid}: b is {now:?}, not {b_may:?}\n{log}"
            );
            (a, b) = now;
            kills += u64::from(killed);
            assert!(!(spared && killed));
            if !killed && !spared {
                break;
            }
        }
    }
    assert!(kills > 80, "{kills} operations are not all that there are");
    let entries = std::fs::read_dir(folder.join("app/p")).unwrap().flatten();
    let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    assert!(names.len() < 30, "{names:?}");
}
