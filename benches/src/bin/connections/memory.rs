//! What /proc says of the memory of processes and of the kernel.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long memory is watched at most until it stays.
const SETTLE: Duration = Duration::from_secs(5);
/// How far apart two looks are.
const LOOK: Duration = Duration::from_millis(50);
/// By how many bytes two looks may differ to be the same.
const SAME_BYTES: u64 = 64 << 10;
/// Descriptors of a side that no connection needs.
const DESCRIPTORS_BESIDES: u64 = 100;
/// Descriptors that a connection may need at a side: socket, memory, a second lane.
const DESCRIPTORS_EACH: u64 = 4;

/// What objects are called that file systems keep, and that no connection needs.
const FILE_SYSTEMS: &[&str] = &[
    "bio",
    "btrfs_",
    "buffer_head",
    "ext4_",
    "fuse_",
    "jbd2_",
    "kernfs_",
    "nfs_",
    "ovl_",
    "proc_",
    "xfs_",
];

/// The memory of some processes and of the kernel at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Of all processes, shared pages divided among those who share them; no files.
    pub processes_bytes: u64,
    /// The kernel's tables for it.
    pub page_tables_bytes: u64,
    /// Objects of the slab allocator, of the whole machine but its file systems: sockets, files,
    /// maps.
    pub kernel_bytes: u64,
    /// Buffers of TCP sockets, of the whole machine.
    pub sockets_bytes: u64,
    /// Open descriptors of each process.
    pub descriptors: Vec<u64>,
    /// Mapped areas of each process.
    pub maps: Vec<u64>,
}

/// Lets this process and those it starts have descriptors for so many connections.
///
/// # Errors
/// The hard limit is too low.
pub fn descriptors_allow(connections: u32) -> Result<(), String> {
    let wanted = DESCRIPTORS_BESIDES + u64::from(connections) * DESCRIPTORS_EACH;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|error| format!("{wanted} descriptors may be needed: {error}"))
}

/// A snapshot once memory stays as it is: the kernel gives some back a little later. `round` is
/// called between looks.
///
/// # Errors
/// See [`Snapshot::take`].
pub fn settle(
    pids: &[u32],
    mut round: impl FnMut() -> Result<(), String>,
) -> Result<Snapshot, String> {
    let begun = Instant::now();
    let mut before = Snapshot::take(pids)?;
    loop {
        let looked = Instant::now();
        while looked.elapsed() < LOOK {
            round()?;
        }
        let now = Snapshot::take(pids)?;
        let same = |now: u64, before: u64| now.abs_diff(before) <= SAME_BYTES;
        let settled = same(now.kernel_bytes, before.kernel_bytes)
            && same(now.processes_bytes, before.processes_bytes)
            && now.descriptors == before.descriptors;
        if settled || begun.elapsed() > SETTLE {
            return Ok(now);
        }
        before = now;
    }
}

impl Snapshot {
    /// What is there now.
    ///
    /// # Errors
    /// A process has ended, or the kernel does not tell.
    pub fn take(pids: &[u32]) -> Result<Self, String> {
        let mut snapshot = Self {
            processes_bytes: 0,
            page_tables_bytes: 0,
            kernel_bytes: kernel_bytes()?,
            sockets_bytes: sockets_bytes(&file_read("/proc/net/sockstat")?)?,
            descriptors: Vec::new(),
            maps: Vec::new(),
        };
        for pid in pids {
            let of = |name: &str| file_read(&format!("/proc/{pid}/{name}"));
            // Without the program's file, whose share depends on who else runs it.
            let memory = of("smaps_rollup")?;
            for part in ["Pss_Anon:", "Pss_Shmem:"] {
                snapshot.processes_bytes += kib_field(&memory, part)? << 10;
            }
            snapshot.page_tables_bytes += kib_field(&of("status")?, "VmPTE:")? << 10;
            snapshot.descriptors.push(descriptors(*pid)?);
            snapshot.maps.push(of("maps")?.lines().count() as u64);
        }
        Ok(snapshot)
    }
}

/// How many descriptors a process has open. Not by listing them if that can be helped: each that
/// is listed costs the kernel an inode, which would be taken for the connection's.
///
/// # Errors
/// The process has ended.
pub fn descriptors(pid: u32) -> Result<u64, String> {
    let folder = format!("/proc/{pid}/fd");
    let error = |error| format!("cannot read {folder}: {error}");
    // Since Linux 6.2 this is their number.
    match std::fs::metadata(&folder).map_err(error)?.len() {
        0 => Ok(std::fs::read_dir(&folder).map_err(error)?.count() as u64),
        count => Ok(count),
    }
}

fn file_read(file: &str) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))
}

/// A line such as `Pss:   12 kB`.
fn kib_field(text: &str, name: &str) -> Result<u64, String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| format!("the kernel does not tell {name}"))
}

/// Objects of the slab allocator: exactly, and without file systems, for who may see them; else all
/// by whole slabs.
fn kernel_bytes() -> Result<u64, String> {
    match std::fs::read_to_string("/proc/slabinfo") {
        Ok(text) => slab_bytes(&text),
        Err(_) => Ok(kib_field(&file_read("/proc/meminfo")?, "Slab:")? << 10),
    }
}

/// Lines `name active_objs num_objs objsize ...` after two of heading.
fn slab_bytes(text: &str) -> Result<u64, String> {
    let mut bytes = 0;
    for line in text.lines().skip(2) {
        if FILE_SYSTEMS.iter().any(|start| line.starts_with(start)) {
            continue;
        }
        let mut fields = line.split_whitespace().skip(1);
        let mut number = |skip: usize| fields.nth(skip)?.parse::<u64>().ok();
        let (active, size) = (number(0), number(1));
        let objects = active.zip(size);
        let (active, size) = objects.ok_or_else(|| format!("'{line}' is no line of slabinfo"))?;
        bytes += active * size;
    }
    match bytes {
        0 => Err("slabinfo lists nothing".into()),
        bytes => Ok(bytes),
    }
}

/// A line `TCP: inuse 2 ... mem PAGES`.
fn sockets_bytes(text: &str) -> Result<u64, String> {
    let line = text.lines().find(|line| line.starts_with("TCP:"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let at = words.iter().position(|word| *word == "mem");
    let pages = at.and_then(|at| words.get(at + 1)?.parse::<u64>().ok());
    let pages = pages.ok_or("the kernel does not tell the memory of TCP sockets")?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells() {
        let slab = "slabinfo - version: 2.1\n# name <active_objs>\n\
                    TCP 10 12 2048 15 8 : tunables 0 0 0 : slabdata 1 1 0\n\
                    filp 100 100 256 16 1 : tunables 0 0 0 : slabdata 7 7 0\n\
                    ext4_inode_cache 9 9 999 16 1 : tunables 0 0 0 : slabdata 7 7 0\n";
        assert_eq!(slab_bytes(slab), Ok(10 * 2048 + 100 * 256));
        assert!(slab_bytes("a\nb\nTCP x 12 2048\n").is_err() && slab_bytes("").is_err());
        let sockstat = "sockets: used 44\nTCP: inuse 2 orphan 0 tw 3 alloc 2 mem 3\n";
        let page = rustix::param::page_size() as u64;
        assert_eq!(sockets_bytes(sockstat), Ok(3 * page));
        assert!(sockets_bytes("UDP: inuse 0 mem 0").is_err());
        assert_eq!(kib_field("Rss: 5 kB\nPss:    12 kB\n", "Pss:"), Ok(12));
        assert!(kib_field("Rss: 5 kB\n", "Pss:").is_err());
    }

    #[test]
    fn a_snapshot_sees_what_is_opened() {
        let pids = [std::process::id()];
        let before = Snapshot::take(&pids).unwrap();
        let files: Vec<_> = (0..50)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        let memory = vec![1_u8; 32 << 20];
        let now = Snapshot::take(&pids).unwrap();
        assert!(now.descriptors[0] >= before.descriptors[0] + 50);
        assert!(now.processes_bytes >= before.processes_bytes + (32 << 20));
        assert_eq!((files.len(), memory.len()), (50, 32 << 20));
    }
}
