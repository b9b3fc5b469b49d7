use std::collections::BTreeMap;

use praas_transport::{Buf, BufPool, Incarnation};
use proptest::prelude::*;

use super::*;
use crate::files::ImageFile;
use crate::mailbox::{MailMessage, MailboxImage};
use crate::state::StateStore;
use crate::swap::ProcessImage;

const TOKEN: [u8; 16] = [7; 16];

fn limits() -> SourceLimits {
    SourceLimits {
        rounds_max: 4,
        freeze_max_bytes: 10,
        window_bytes: 1000,
        piece_max_bytes: 64,
    }
}

/// What an object counts for besides its key and its bytes.
const EACH: u64 = crate::state::OBJECT_OVERHEAD_BYTES;

fn takes(state_max_bytes: u64) -> TargetLimits {
    TargetLimits {
        state_max_bytes,
        mailbox_messages_max: 10,
        mailbox_max_bytes: 1 << 20,
        files_max: 3,
        files_max_bytes: 1000,
    }
}

/// Source and target, and what is on its way between them.
struct Pair {
    store: StateStore,
    source: Source,
    target: Target,
    notices: Vec<Notice>,
}

impl Pair {
    fn new() -> Self {
        let target = Target::new(BufPool::new(1 << 24), takes(1 << 20));
        let mut source = Source::new(TOKEN, limits());
        assert!(source.heard(&FromTarget::Begin { token: TOKEN }));
        Self {
            store: StateStore::new(BufPool::new(1 << 24), 1 << 20),
            source,
            target,
            notices: Vec::new(),
        }
    }

    /// One step of the source, and what follows of it at once.
    fn step(&mut self) -> bool {
        while let Some(notice) = self.source.notice() {
            self.notices.push(notice);
        }
        match self.source.step(&self.store) {
            Step::Idle => return false,
            Step::Again => {}
            Step::Send(Out::Word(word)) => {
                let bytes = word_encode(&word).unwrap();
                assert!(bytes.len() <= WORD_MAX_BYTES);
                assert_eq!(word_decode::<FromSource>(&bytes).as_ref(), Ok(&word));
                self.target.heard(word).unwrap();
            }
            Step::Send(Out::Piece { entry, offset, buf }) => {
                let room = self.target.piece_room(entry, offset, buf.len() as u64);
                assert_eq!(room.unwrap().len(), buf.len());
                let copy = Buf::from_vec(buf.to_vec());
                self.target.piece(entry, offset, copy).unwrap();
            }
        }
        if let Some(word) = self.target.says() {
            assert!(self.source.heard(&word), "{word:?}");
        }
        true
    }

    fn freeze(&mut self) -> MailboxImage {
        let message = |bytes: usize| MailMessage {
            source: "s".into(),
            key: "k".into(),
            payload: Buf::from_vec(vec![3; bytes]),
        };
        let mailbox = MailboxImage {
            messages: vec![message(1), message(100_000), message(70_000), message(0)],
            seen: Vec::new(),
        };
        self.source.frozen(
            ProcessImage {
                application: "a".into(),
                process: "p".into(),
                incarnation: Incarnation(1),
                kind: crate::swap::ImageKind::Final,
                state_version: self.store.snapshot_at().2,
                state: self.store.snapshot().unwrap(),
                mailbox: mailbox.clone(),
                sessions: Vec::new(),
                files: vec![ImageFile {
                    name: b"\xff".into(),
                    mode: 0o750,
                    bytes: Buf::from_vec(vec![9; 100]),
                }],
            },
            vec![1, 2],
        );
        mailbox
    }
}

proptest! {
    /// Whatever is written while it is copied, the target has what the source had when it froze.
    #[test]
    fn the_target_has_what_the_source_had(
        first in proptest::collection::vec((0..200_u8, 0..200_usize), 0..200),
        then in proptest::collection::vec((0..200_u8, 0..200_usize, any::<bool>()), 0..100),
    ) {
        let mut pair = Pair::new();
        for (key, len) in first {
            pair.store.put(&format!("key{key}"), &vec![key; len]).unwrap();
        }
        let mut then = then.into_iter();
        while !pair.notices.contains(&Notice::Freeze) {
            prop_assert!(pair.step() || !pair.notices.is_empty());
            if let Some((key, len, delete)) = then.next() {
                let name = format!("key{key}");
                match delete {
                    true => drop(pair.store.delete(&name)),
                    false => drop(pair.store.put(&name, &vec![key ^ 1; len]).unwrap()),
                }
            }
        }
        let mailbox = pair.freeze();
        while pair.step() {}
        prop_assert_eq!(pair.notices.last(), Some(&Notice::Complete));
        prop_assert!(pair.source.in_doubt() && !pair.source.give_up("late"));
        prop_assert_eq!(pair.target.vouched(), [1, 2]);
        let image = pair.target.image("a", "p", Incarnation(1)).unwrap();
        let all = |state: Vec<(String, Buf, _)>| -> BTreeMap<_, _> {
            state.into_iter().map(|(key, buf, meta)| (key, (buf.to_vec(), meta))).collect()
        };
        // Deletions count, too.
        prop_assert_eq!(image.state_version, pair.store.snapshot_at().2);
        prop_assert_eq!(all(image.state), all(pair.store.snapshot().unwrap()));
        prop_assert_eq!(image.mailbox, mailbox);
        prop_assert_eq!((&image.files[0].name[..], image.files[0].mode), (&b"\xff"[..], 0o750));
    }
}

#[test]
fn who_does_not_know_the_token_gets_nothing() {
    let mut source = Source::new(TOKEN, limits());
    assert!(!source.heard(&FromTarget::Begin { token: [8; 16] }));
    assert!(!source.heard(&FromTarget::Complete));
    let store = StateStore::new(BufPool::new(1 << 20), 1 << 20);
    assert!(matches!(source.step(&store), Step::Idle));
}

#[test]
fn the_source_gives_up_until_the_end_is_out() {
    let mut pair = Pair::new();
    pair.store.put("k", &[1; 500]).unwrap();
    while pair.step() {}
    assert_eq!(pair.notices, [Notice::Freeze]);
    assert!(!pair.source.in_doubt());
    pair.source.lost("it died");
    assert_eq!(pair.source.notice(), Some(Notice::Failed("it died".into())));

    let mut pair = Pair::new();
    while pair.step() {}
    assert!(pair.source.give_up("no more"));
    let Step::Send(Out::Word(word)) = pair.source.step(&pair.store) else {
        panic!();
    };
    let refused = pair.target.heard(word);
    assert_eq!(refused, Err(PullError::Source("no more".into())));

    let mut pair = Pair::new();
    while pair.step() {}
    pair.freeze();
    while !pair.source.in_doubt() {
        assert!(pair.step());
    }
    pair.source.lost("it died");
    while let Some(notice) = pair.source.notice() {
        pair.notices.push(notice);
    }
    assert!(!matches!(pair.notices.last(), Some(Notice::Failed(_))));
}

#[test]
fn what_is_too_large_or_twice_is_refused() {
    let limit = 2 * (EACH + 100);
    let mut target = Target::new(BufPool::new(limit as usize), takes(limit / 2));
    let object = |bytes| Entry {
        what: What::Object {
            key: "k".into(),
            version: 1,
            written_unix_ms: 0,
        },
        bytes,
    };
    target.heard(FromSource::Entries(vec![object(50)])).unwrap();
    // It takes the place of the first.
    target.heard(FromSource::Entries(vec![object(99)])).unwrap();
    // Others of its time may be gone.
    target
        .heard(FromSource::Entries(vec![object(EACH + 199)]))
        .unwrap();
    let over = target.heard(FromSource::Entries(vec![object(EACH + 200)]));
    assert_eq!(over, Err(PullError::TooLarge { limit }));
    assert!(target.piece_room(0, 1, 50).is_err());
    assert!(target.piece_room(0, u64::MAX, 2).is_err());
    target.piece(0, 0, Buf::from_vec(vec![0; 50])).unwrap();
    let twice = target.piece(0, 0, Buf::from_vec(vec![0; 50]));
    assert!(matches!(twice, Err(PullError::Malformed(_))), "{twice:?}");
    assert!(!target.is_complete());
}

/// The source was restored above its limit.
#[test]
fn a_state_above_its_limit_moves_as_it_is() {
    let mut pair = Pair::new();
    pair.target = Target::new(BufPool::new(1 << 20), takes(EACH));
    for key in ["a", "b", "c", "d"] {
        pair.store.put(key, &[7; 400]).unwrap();
    }
    while pair.step() {}
    pair.freeze();
    while pair.step() {}
    assert!(pair.target.is_complete());
}

#[test]
fn pieces_that_overlap_make_nothing_whole() {
    let mut target = Target::new(BufPool::new(1 << 20), takes(1 << 16));
    let entry = |key: &str| Entry {
        what: What::Object {
            key: key.into(),
            version: 1,
            written_unix_ms: 0,
        },
        bytes: 100,
    };
    let piece = |len, with| Buf::from_vec(vec![with; len]);
    target
        .heard(FromSource::Entries(vec![entry("k"), entry("l")]))
        .unwrap();
    target.piece(0, 0, piece(50, 1)).unwrap();
    for (offset, len) in [(0, 50), (49, 51), (0, 100), (20, 10)] {
        let twice = target.piece(0, offset, piece(len, 2));
        assert!(matches!(twice, Err(PullError::Malformed(_))), "{offset}");
        assert!(!target.is_complete());
    }
    // In any order they do.
    let mut target = Target::new(BufPool::new(1 << 20), takes(1 << 16));
    target.heard(FromSource::Entries(vec![entry("k")])).unwrap();
    target.heard(FromSource::Round { round: 1 }).unwrap();
    for offset in [60, 0, 80, 20, 40] {
        assert_eq!(target.says(), None);
        target.piece(0, offset, piece(20, offset as u8)).unwrap();
    }
    assert_eq!(target.says(), Some(FromTarget::Have { round: 1 }));
}

#[test]
fn what_is_gone_makes_room_for_what_came_in_its_place() {
    // Less than two generations of objects are ever there, and each round finds another.
    let mut pair = Pair::new();
    pair.target = Target::new(BufPool::new(1 << 24), takes(1000 + 8 * EACH));
    let mut generation = 0;
    let mut replace = |store: &StateStore| {
        for at in 0..8 {
            // Older ones come after: what replaces them is looked at first.
            let _ = store.delete(&format!("key{}{at}", 100 - generation));
            let key = format!("key{}{at}", 99 - generation);
            store.put(&key, &[1; 100]).unwrap();
        }
        generation += 1;
    };
    replace(&pair.store);
    let mut rounds = 0;
    while pair.step() || pair.notices.is_empty() {
        if pair.source.counts().rounds > rounds {
            rounds = pair.source.counts().rounds;
            replace(&pair.store);
        }
    }
    assert_eq!(pair.notices, [Notice::Freeze]);
    assert_eq!(rounds, limits().rounds_max);
    pair.freeze();
    while pair.step() {}
    assert_eq!(pair.notices.last(), Some(&Notice::Complete));
    let image = pair.target.image("a", "p", Incarnation(1)).unwrap();
    assert_eq!(image.state.len(), 8);
}

#[test]
fn an_end_that_finds_no_room_leaves_no_doubt() {
    let mut pair = Pair::new();
    while pair.step() {}
    pair.freeze();
    let end = loop {
        match pair.source.step(&pair.store) {
            Step::Send(Out::Word(end @ FromSource::End { .. })) => break end,
            Step::Idle => panic!("no end"),
            _ => {}
        }
    };
    assert!(pair.source.in_doubt());
    pair.source.put_back(Out::Word(end));
    assert!(!pair.source.in_doubt());
    assert!(pair.source.give_up("it took too long"));
    let Step::Send(Out::Word(word)) = pair.source.step(&pair.store) else {
        panic!();
    };
    assert!(matches!(word, FromSource::Failed { .. }));
    assert!(matches!(pair.source.step(&pair.store), Step::Idle));
}

#[test]
fn more_files_and_messages_than_there_may_be_are_refused() {
    let file = |bytes| Entry {
        what: What::File {
            name: "f".into(),
            mode: 0o644,
        },
        bytes,
    };
    let body = |bytes| Entry {
        what: What::Body,
        bytes,
    };
    let setting = |entries: Vec<Entry>| {
        let mut target = Target::new(BufPool::new(1 << 24), takes(1 << 20));
        match target.heard(FromSource::Entries(entries)) {
            Err(PullError::TooMuch { setting, .. }) => setting,
            Ok(()) => "",
            other => panic!("{other:?}"),
        }
    };
    // Those without bytes, too.
    assert_eq!(setting(vec![file(0), file(500), file(500)]), "");
    assert_eq!(setting(vec![file(0); 4]), "files_max");
    assert_eq!(setting(vec![file(500), file(501)]), "files_max_bytes");
    assert_eq!(setting(vec![body(0); 20]), "");
    assert_eq!(setting(vec![body(0); 21]), "twice mailbox_messages_max");
    let large = vec![body(1 << 20), body(1 << 20), body(1)];
    assert_eq!(setting(large), "twice mailbox_max_bytes");
    // Also those that are in the mailbox itself.
    let mut pair = Pair::new();
    pair.target = Target::new(
        BufPool::new(1 << 24),
        TargetLimits {
            mailbox_messages_max: 1,
            ..takes(1 << 20)
        },
    );
    while pair.step() {}
    pair.freeze();
    while pair.step() {}
    let image = pair.target.image("a", "p", Incarnation(1));
    assert!(matches!(image, Err(PullError::TooMuch { .. })), "{image:?}");
}
