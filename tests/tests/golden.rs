//! Every format, held to its golden files. What the fields mean is in the documents named here.

use praas_control::agent::{self, FromAgent, ToAgent};
use praas_control::store::{ApplicationRecord, ProcessRecord, TokenRecord, TransferRecord};
use praas_runtime::codec;
use praas_runtime::directory::{DirectoryAnswer, DirectoryRequest};
use praas_runtime::host::{FromHost, ToHost};
use praas_runtime::invocation::{
    Kind, RequestHeader, Status, passed_decode, passed_encode, short_header,
};
use praas_runtime::locate::{LOCATE_BYTES, LOCATED_FOLLOWS, LocateHeader, LocateKind, LocatedBody};
use praas_runtime::process::ProcessSettings;
use praas_runtime::state::Place;
use praas_runtime::swap::SwapConfig;
use praas_runtime::transfer::{FromSource, FromTarget, WORD_HEADER, piece_header};
use praas_runtime::world::World;
use praas_tests::golden::{Field, Golden, fields_cut, fields_traced};
use praas_transport::wire::{
    Capabilities, Dialler, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Listener, Local, Step,
    bulk_hello, refusal,
};
use praas_transport::{
    Address, Credential, HostId, Identity, Incarnation, Keyring, RefuseReason, RemoteKey, Role,
    Secret, Ticket,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use zerocopy::IntoBytes;

/// A value out of JSON, where names stand beside what they name and a field that is missing is
/// named.
fn value<T: DeserializeOwned>(json: serde_json::Value) -> T {
    serde_json::from_value(json).expect("the golden value has all fields of its type")
}

/// A secret or a hash, as JSON has it.
fn bytes32(byte: u8) -> Vec<u8> {
    vec![byte; 32]
}

#[test]
fn golden_frames() {
    let mut golden = Golden::open("frame", "docs/wire.md, \"Frames\"");
    let header = FrameHeader::new;
    let (tag, transfer) = (0x0102_0304_0506_0708, 0x0000_0001_0000_0002);
    let user = [0xa1_u8, 0xa2, 0xa3];
    let word = |value: u64| value.to_le_bytes();
    let (key, op) = (0x1112_1314_1516_1718, 0x0000_0003_0000_0001);
    let one = word(key);
    let two = [word(key), word(7)].concat();
    let three = [word(key), word(5), word(9)].concat();
    let segment = [[0xb1; 24].as_slice(), &word(1 << 20)].concat();
    let at = |kind, words: &[u8]| {
        let words = words.len() as u8;
        header(kind).with_message(0, words).with_id(op).with_aux(64)
    };
    let frames: [(&str, FrameHeader, &[u8], &[u8]); 17] = [
        (
            "eager",
            header(FrameKind::Eager)
                .with_message(1, 3)
                .with_id(tag)
                .with_len(5),
            &user,
            b"hello",
        ),
        (
            "rts",
            header(FrameKind::Rts)
                .with_message(2, 3)
                .with_id(tag)
                .with_len(1 << 20)
                .with_aux(transfer),
            &user,
            b"",
        ),
        ("cts", header(FrameKind::Cts).with_id(transfer), b"", b""),
        (
            "rej",
            header(FrameKind::Rej).with_id(transfer).with_aux(12),
            b"",
            b"",
        ),
        (
            "data",
            header(FrameKind::Data)
                .with_id(transfer)
                .with_len(4)
                .with_aux(256 << 10),
            b"",
            b"bulk",
        ),
        ("fin", header(FrameKind::Fin).with_id(transfer), b"", b""),
        ("close", header(FrameKind::Close), b"", b""),
        ("ping", header(FrameKind::Ping).with_id(tag), b"", b""),
        ("pong", header(FrameKind::Pong).with_id(tag), b"", b""),
        (
            "immediate",
            header(FrameKind::Immediate).with_id(tag).with_aux(64),
            b"",
            b"",
        ),
        (
            "rts-pull",
            header(FrameKind::RtsPull)
                .with_segments(1)
                .with_message(2, 3)
                .with_id(tag)
                .with_len(1 << 20)
                .with_aux(transfer),
            &user,
            &segment,
        ),
        ("put", at(FrameKind::Put, &two).with_len(3), &two, b"put"),
        (
            "put-rts",
            at(FrameKind::PutRts, &two).with_len(1 << 20),
            &two,
            b"",
        ),
        ("get", at(FrameKind::Get, &one).with_len(3), &one, b""),
        (
            "fetch-add",
            at(FrameKind::FetchAdd, &two).with_len(8),
            &two,
            b"",
        ),
        (
            "compare-swap",
            at(FrameKind::CompareSwap, &three).with_len(8),
            &three,
            b"",
        ),
        (
            "answer",
            header(FrameKind::Answer)
                .with_id(op)
                .with_aux(5)
                .with_len(3),
            b"",
            b"got",
        ),
    ];
    for (file, header, user_header, payload) in frames {
        let bytes = [header.as_bytes(), user_header, payload].concat();
        let fields = [
            ("kind", 1),
            ("flags", 1),
            ("am_id", 1),
            ("uhdr_len", 1),
            ("credits", 4),
            ("id", 8),
            ("len", 8),
            ("aux", 8),
            ("user header", user_header.len()),
            ("payload", payload.len()),
        ];
        golden.hold(file, &fields_cut(&bytes, &fields));
        let head = bytes.first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        assert_eq!(FrameHeader::decode(head).unwrap().1, header, "{file}");
    }
    golden.close();
}

/// The two sides of the golden handshake. They are those of the fuzz target, so that its seeds get
/// past the ticket, but for what is chosen at random.
fn parties() -> (Local, Credential, Local, Keyring) {
    let identity = |name: &str, incarnation, client_id| Identity {
        application: "a".into(),
        name: name.into(),
        incarnation: Incarnation(incarnation),
        client_id,
    };
    let side = |identity, nonce| Local {
        identity,
        caps: Capabilities::MEMBARRIER,
        nonce: [nonce; 16],
    };
    let secret = Secret::from_bytes([7; 32]);
    let keyring = Keyring::new();
    keyring.insert("a", 0, secret.clone());
    let credential = Credential::issue(&secret, &ticket(Role::Client, 0, 1, 0));
    (
        side(identity("", 0, 0x0f0e_0d0c), 0xd1),
        credential,
        side(identity("worker", 5, 0x0a0b), 0x51),
        keyring,
    )
}

fn ticket(role: Role, client_id: u128, expires_unix_ms: u64, key_id: u32) -> Ticket {
    Ticket {
        application: "a".into(),
        role,
        client_id,
        expires_unix_ms,
        key_id,
    }
}

const SIDE_DIALLER: [(&str, usize); 8] = [
    ("caps", 4),
    ("host", 16),
    ("nonce", 16),
    ("client_id", 16),
    ("incarnation", 8),
    ("application length", 2),
    ("application", 1),
    ("name length", 2),
];

#[test]
fn golden_handshake() {
    let mut golden = Golden::open("handshake", "docs/wire.md, \"Handshake\"");
    let (dialling, credential, listening, keyring) = parties();
    let (here, there) = (HostId(0x0101), HostId(0x0202));
    // What a listener on shared memory adds to Accept: bytes of a large ring and of a bulk ring.
    let params = [262_144_u64.to_le_bytes(), 1_048_576_u64.to_le_bytes()].concat();
    let (hello, mut dialler) = Dialler::start(dialling, &credential, Incarnation(0), here);
    let mut listener = Listener::start(listening.clone(), there, params);
    let Ok((_, Step::Send(challenge))) = listener.feed(&hello, Some(&keyring), 0) else {
        panic!("Hello is not answered");
    };
    let Ok((_, Step::Send(proof))) = dialler.feed(&challenge) else {
        panic!("Challenge is not answered");
    };
    let Ok((_, Step::Done(accept, _))) = listener.feed(&proof, Some(&keyring), 0) else {
        panic!("Proof is not accepted");
    };
    assert!(matches!(
        dialler.feed(&accept),
        Ok((_, Step::Done(_, agreed))) if agreed.caps == Capabilities::MEMBARRIER
    ));
    let head = [("length", 2), ("type", 1)];
    let with = |parts: &[&[(&'static str, usize)]]| parts.concat();
    let magic = [("magic", 8), ("version lowest", 2), ("version highest", 2)];
    let end = [
        ("expected incarnation", 8),
        ("ticket length", 2),
        ("ticket", 32),
    ];
    let fields = with(&[&head, &magic, &SIDE_DIALLER, &end]);
    golden.hold("hello", &fields_cut(&hello, &fields));
    let side = with(&[&SIDE_DIALLER, &[("name", 6)]]);
    let fields = with(&[&head, &[("version", 2)], &side, &[("proof", 32)]]);
    golden.hold("challenge", &fields_cut(&challenge, &fields));
    golden.hold(
        "proof",
        &fields_cut(&proof, &with(&[&head, &[("proof", 32)]])),
    );
    let rings = [("ring bytes", 8), ("bulk bytes", 8)];
    golden.hold("accept", &fields_cut(&accept, &with(&[&head, &rings])));
    let fields = with(&[&head, &[("magic", 8), ("session", 16)]]);
    golden.hold("bulk", &fields_cut(&bulk_hello(&[0xb1; 16]), &fields));

    let mut other = hello.clone();
    other[11..15].copy_from_slice(&[9, 0, 9, 0]);
    for (file, hello, now) in [("refuse-version", &other, 0), ("refuse-expired", &hello, 1)] {
        let mut listener = Listener::start(listening.clone(), there, Vec::new());
        let error = listener.feed(hello, Some(&keyring), now).unwrap_err();
        let fields = with(&[&head, &[("reason", 2), ("text length", 2)]]);
        golden.hold(file, &fields_cut(&refusal(&error), &fields));
    }
    golden.close();
}

#[test]
fn golden_tickets() {
    let mut golden = Golden::open("ticket", "docs/wire.md, \"Tickets\"");
    let fields = [
        ("version", 1),
        ("role", 1),
        ("name length", 1),
        ("name", 1),
        ("client_id", 16),
        ("expires_unix_ms", 8),
        ("key_id", 4),
    ];
    for (file, role) in [
        ("client", Role::Client),
        ("process", Role::Process),
        ("agent", Role::Agent),
        ("control", Role::Control),
    ] {
        let ticket = ticket(role, 0x0102_0304, 1_700_000_000_000, 3);
        let bytes = ticket.encode();
        golden.hold(file, &fields_cut(&bytes, &fields));
        assert_eq!(Ticket::decode(&bytes), Ok(ticket));
    }
    golden.close();
}

#[test]
fn golden_addresses() {
    let mut golden = Golden::open("address", "docs/wire.md, \"Addresses\"");
    let shm = Address::Shm {
        host: HostId(0x0123_4567_89ab_cdef),
        name: "praas-0011223344556677".into(),
    };
    let unix = |name: &str| Address::Unix {
        host: HostId(0x0123_4567_89ab_cdef),
        name: name.into(),
    };
    for (file, address) in [
        ("mem", Address::Mem("name".into())),
        ("shm", shm),
        ("unix", unix("praas-0011223344556677")),
        ("unix-path", unix("/run/praas/p.sock")),
        ("tcp4", Address::Tcp("127.0.0.1:4711".parse().unwrap())),
        ("tcp6", Address::Tcp("[::1]:4711".parse().unwrap())),
    ] {
        let text = address.to_string();
        golden.hold(file, &fields_cut(text.as_bytes(), &[]));
        assert_eq!(text.parse(), Ok(address));
    }
    golden.close();
}

#[test]
fn golden_invocations() {
    let mut golden = Golden::open("invocation", "docs/wire.md, \"Invocations\"");
    let request = [
        ("kind", 1),
        ("flags", 1),
        ("status", 2),
        ("function", 4),
        ("deadline_us", 4),
        ("acked_delta", 4),
        ("first incarnation", 8),
    ];
    for (file, first, one_way) in [
        ("request", None, false),
        ("request-again", Some(Incarnation(41)), false),
        ("request-one-way", None, true),
    ] {
        let header = RequestHeader {
            function: 7,
            deadline_us: 1_500_000,
            acked_delta: 3,
            first,
            one_way,
        };
        let (bytes, len) = header.encode();
        golden.hold(file, &fields_cut(&bytes[..len], &request));
        assert_eq!(RequestHeader::decode(&bytes[..len]), Some(header));
    }
    let short = [("kind", 1), ("flags", 1), ("status", 2), ("word", 4)];
    for (file, kind, status) in [
        ("reply-ok", Kind::Reply, Status::Ok),
        ("reply-panicked", Kind::Reply, Status::Panicked),
        ("intern", Kind::Intern, Status::Ok),
        ("cancel", Kind::Cancel, Status::Ok),
        ("passed", Kind::Passed, Status::Ok),
    ] {
        golden.hold(
            file,
            &fields_cut(&short_header(kind, status as u16, 0), &short),
        );
    }
    let sequences = [3, 0x0102_0304_0506];
    let listed = passed_encode(sequences.into_iter());
    golden.hold(
        "passed-listed",
        &fields_cut(&listed, &[("sequence", 8), ("sequence", 8)]),
    );
    assert_eq!(passed_decode(&listed), Some(sequences.to_vec()));
    golden.close();
}

#[test]
fn golden_mailbox() {
    let mut golden = Golden::open("mailbox", "docs/wire.md, \"Mailboxes\"");
    let put = [
        ("kind", 1),
        ("flags", 1),
        ("status", 2),
        ("key length", 4),
        ("key", 3),
        ("body", 4),
    ];
    let bytes = [&short_header(Kind::Put, 0, 3)[..], b"key", b"body"].concat();
    golden.hold("put", &fields_cut(&bytes, &put));
    for (file, status) in [("ack", Status::Ok), ("ack-full", Status::MailboxFull)] {
        let bytes = short_header(Kind::PutAck, status as u16, 0);
        golden.hold(file, &fields_cut(&bytes, &put[..4]));
    }
    golden.close();
}

#[test]
fn golden_locate() {
    let mut golden = Golden::open("locate", "docs/wire.md, \"Reads of state\"");
    let header = [("kind", 1), ("flags", 1), ("status", 2), ("zero", 4)];
    let ask = |flags| LocateHeader {
        kind: LocateKind::Locate,
        flags,
        status: 0,
    };
    for (file, flags) in [("locate", 0), ("locate-whole", LOCATE_BYTES)] {
        let bytes = [&ask(flags).encode()[..], b"key"].concat();
        let fields = [&header[..], &[("key", 3)]].concat();
        golden.hold(file, &fields_cut(&bytes, &fields));
    }
    let place = Place {
        object: RemoteKey(0x1112_1314_1516_1718),
        offset: 64,
        len: 5,
        words: RemoteKey(0x2122_2324_2526_2728),
        word: 24,
    };
    let fields = [
        ("version", 8),
        ("object", 8),
        ("offset", 8),
        ("len", 8),
        ("words", 8),
        ("word", 8),
        ("bytes", 5),
    ];
    let version = 0x0000_0003_0000_0009;
    for (file, version, place, bytes, more, count) in [
        ("located", version, Some(place), None, 0, 6),
        (
            "located-inline",
            version,
            Some(place),
            Some(&b"bytes"[..]),
            0,
            7,
        ),
        ("located-follows", version, None, None, LOCATED_FOLLOWS, 1),
        ("located-absent", 0, None, None, 0, 1),
    ] {
        let body = LocatedBody {
            version,
            place,
            bytes,
        };
        let (flags, payload) = body.encode();
        let located = LocateHeader {
            kind: LocateKind::Located,
            flags: flags | more,
            status: 0,
        };
        assert_eq!(LocatedBody::decode(flags | more, &payload), Some(body));
        let bytes = [&located.encode()[..], &payload].concat();
        let fields = [&header[..], &fields[..count]].concat();
        golden.hold(file, &fields_cut(&bytes, &fields));
    }
    let refused = LocateHeader {
        kind: LocateKind::Located,
        flags: 0,
        status: Status::Forbidden as u16,
    };
    golden.hold("refused", &fields_cut(&refused.encode(), &header));
    let bytes = LocateHeader {
        kind: LocateKind::Bytes,
        flags: 0,
        status: 0,
    };
    golden.hold("bytes", &fields_cut(&bytes.encode(), &header));
    golden.close();
}

const TOKEN: [u8; 16] = [5; 16];
const TCP: &str = "tcp:127.0.0.1:4711";

#[test]
fn golden_directory() {
    let mut golden = Golden::open("directory", "docs/wire.md, \"Directory\"");
    let resolve: DirectoryRequest = value(json!({"Resolve": {"process": "p", "ensure": true}}));
    golden.hold_value("resolve", &resolve);
    let resolved: DirectoryAnswer =
        value(json!({"Resolved": {"incarnation": 300, "addresses": [TCP]}}));
    golden.hold_value("resolved", &resolved);
    golden.hold_value("failed", &DirectoryAnswer::Failed("it was stopped".into()));
    golden.close();
}

#[test]
fn golden_world() {
    let mut golden = Golden::open("world", "docs/wire.md, \"World views\"");
    golden.hold_value("empty", &World::default());
    let states = ["Starting", "Ready", "Swapped", "Gone"];
    let members: Vec<_> = (1..)
        .zip(states)
        .map(|(incarnation, state)| {
            let addresses: &[&str] = if state == "Ready" { &[TCP] } else { &[] };
            json!({"name": state, "incarnation": incarnation, "state": state,
                "addresses": addresses})
        })
        .collect();
    let world: World = value(json!({"generation": 70_000, "members": members}));
    golden.hold_value("all-states", &world);
    golden.close();
}

/// A message behind its length, as it is between agent and host.
fn framed<T: Serialize>(message: &T) -> Vec<Field> {
    let mut fields = fields_traced(message);
    let len: usize = fields.iter().map(|field| field.bytes.len()).sum();
    let length = Field {
        name: "length".into(),
        bytes: (len as u32).to_le_bytes().into(),
    };
    fields.insert(0, length);
    fields
}

#[test]
fn golden_host() {
    let mut golden = Golden::open("host", "docs/wire.md, \"Agent and host\"");
    let start = json!({
        "application": "a", "process": "p", "incarnation": 3, "life": 2, "modules": ["/m.so"],
        "settings": ProcessSettings::default(), "listen": ["127.0.0.1:0"], "key_id": 2,
        "secret": bytes32(9), "directory": [TCP], "transports": ["tcp"], "storage": "file:/swap",
        "swap": SwapConfig::default(), "swap_generation": 5,
        "agent_socket": "/run/agent.sock", "agent_grace_s": 10, "cpus": [0, 1],
        "unix_dir": "/run/praas", "verbs_listen": ["10.0.0.1:0"], "swapped": true,
        "from": {"addresses": [TCP], "incarnation": 2, "token": TOKEN},
    });
    for (file, json) in [
        ("to-start", json!({"Start": start})),
        ("to-adopted", json!({"Adopted": {"directory": [TCP]}})),
        (
            "to-world",
            json!({"World": {"generation": 1, "members": []}}),
        ),
        (
            "to-keys",
            json!({"Keys": {"key_id": 3, "secret": bytes32(8)}}),
        ),
        ("to-swap-out", json!("SwapOut")),
        ("to-stop", json!("Stop")),
        ("to-stats", json!("Stats")),
        ("to-checkpoint", json!("Checkpoint")),
        (
            "to-transfer-out",
            json!({"TransferOut": {"incarnation": 4, "token": TOKEN}}),
        ),
        ("to-transfer-thaw", json!("TransferThaw")),
        ("to-transfer-serve", json!("TransferServe")),
    ] {
        golden.hold(file, &framed(&value::<ToHost>(json)));
    }
    let hello = json!({
        "pid": 4711, "application": "a", "process": "p", "incarnation": 3, "addresses": [TCP],
        "swap_generation": 5, "rejected": [], "transfer": "Frozen",
    });
    let ready = json!({"addresses": [TCP], "swap_generation": 5, "rejected": ["6: torn"]});
    let stats = json!({"invocations": 1, "running": 2, "blocked": 3, "queued": 4,
        "state_bytes": 5, "messages": 6, "spin_ns": 7, "asleep_ns": 8, "work_ns": 9,
        "one_way": 10, "one_way_failed": 11, "overdue": 12, "persisted_objects": 13,
        "persisted_bytes": 14, "persist_failures": 15, "persist_groups": 16, "persist_ns": 17});
    for (file, json) in [
        ("from-hello", json!({"Hello": hello})),
        ("from-ready", json!({"Ready": ready})),
        ("from-failed", json!({"Failed": {"error": "no"}})),
        (
            "from-swapped",
            json!({"Swapped": {"generation": 6, "bytes": 1000}}),
        ),
        ("from-swap-failed", json!({"SwapFailed": {"error": "no"}})),
        ("from-stats", json!({"Stats": stats})),
        (
            "from-checkpointed",
            json!({"Checkpointed": {"generation": 6, "bytes": 1000, "took_ms": 20,
                "written_unix_ms": 30}}),
        ),
        (
            "from-checkpoint-failed",
            json!({"CheckpointFailed": {"error": "no"}}),
        ),
        (
            "from-checkpoint-unasked",
            json!({"CheckpointUnasked": {"generation": 6, "bytes": 1000, "took_ms": 20,
                "written_unix_ms": 30}}),
        ),
        (
            "from-transfer",
            json!({"Transfer": {"state": "Prepared", "error": null}}),
        ),
        (
            "from-transfer-failed",
            json!({"Transfer": {"state": "None", "error": "no"}}),
        ),
    ] {
        golden.hold(file, &framed(&value::<FromHost>(json)));
    }
    golden.close();
}

#[test]
fn golden_agent() {
    let mut golden = Golden::open("agent", "docs/wire.md, \"Agent and control plane\"");
    let report = json!({
        "application": "a", "process": "p", "incarnation": 7, "life": 5, "state": "ready", "pid": 4711,
        "addresses": [TCP], "swap_generation": 2, "error": "torn", "swapped": false, "transfer": "prepared",
    });
    let counted = json!({
        "invocations": 1, "running": 2, "blocked": 3, "queued": 4, "state_bytes": 5,
        "messages": 6, "puts": 7, "resident_bytes": 8, "spin_ns": 9, "asleep_ns": 10,
        "work_ns": 11, "persisted_objects": 12, "persisted_bytes": 13, "persist_failures": 14,
        "persist_groups": 15, "persist_ns": 16,
    });
    let stats = json!({
        "application": "a", "process": "p", "incarnation": 7, "stats": counted,
        "restored": {"generation": 2, "checkpoint": true, "written_unix_ms": 12},
        "checkpoint": {"generation": 3, "bytes": 13, "took_ms": 14, "written_unix_ms": 15},
        "checkpoint_error": "no",
    });
    let resolve = json!({"request": 8, "application": "a", "process": "p", "ensure": true});
    for (file, json) in [
        (
            "from-hello",
            json!({"Hello": {"node": "n", "cpus": 4, "memory_bytes": 1 << 30,
                "inventory": [report]}}),
        ),
        ("from-report", json!({"Report": report})),
        ("from-resolve", json!({"Resolve": resolve})),
        (
            "from-answer-ok",
            json!({"Answer": {"request": 1, "result": {"Ok": null}}}),
        ),
        (
            "from-answer-err",
            json!({"Answer": {"request": 1, "result": {"Err": "no"}}}),
        ),
        (
            "from-stats",
            json!({"Stats": {"resident_bytes": 1 << 30, "hosts": [stats]}}),
        ),
    ] {
        golden_agent_hold(&mut golden, file, &value::<FromAgent>(json));
    }
    let host = json!({"request": 1, "application": "a", "process": "p", "incarnation": 3});
    let start = json!({
        "request": 1, "application": "a", "process": "p", "incarnation": 3, "life": 2,
        "modules": ["/m.so"], "settings": "{}", "key_id": 2, "secret": bytes32(9),
        "swap_generation": 1, "swapped": true,
        "from": {"addresses": [TCP], "incarnation": 2, "token": TOKEN},
    });
    let out = json!({
        "request": 1, "application": "a", "process": "p", "incarnation": 3, "to_incarnation": 4,
        "token": TOKEN,
    });
    let key = json!({"application": "a", "key_id": 2, "secret": bytes32(9)});
    let member = json!({"name": "p", "incarnation": 3, "state": "starting", "addresses": []});
    let place = json!({"incarnation": 3, "addresses": [TCP]});
    for (file, json) in [
        ("to-start", json!({"Start": start})),
        ("to-swap-out", json!({"SwapOut": host})),
        ("to-stop", json!({"Stop": host})),
        ("to-checkpoint", json!({"Checkpoint": host})),
        (
            "to-delete-images",
            json!({"DeleteImages": {"request": 5, "application": "a", "process": "p", "below": 8}}),
        ),
        ("to-applications", json!({"Applications": [key]})),
        (
            "to-world",
            json!({"World": {"application": "a", "generation": 4, "members": [member]}}),
        ),
        (
            "to-resolved-ok",
            json!({"Resolved": {"request": 6, "result": {"Ok": place}}}),
        ),
        (
            "to-resolved-err",
            json!({"Resolved": {"request": 6,
                "result": {"Err": {"kind": "NotFound", "detail": "x"}}}}),
        ),
        ("to-transfer-out", json!({"TransferOut": out})),
        ("to-transfer-thaw", json!({"TransferThaw": host})),
        ("to-transfer-serve", json!({"TransferServe": host})),
    ] {
        golden_agent_hold(&mut golden, file, &value::<ToAgent>(json));
    }
    golden.close();
}

/// The control plane has a codec of its own, which writes the same.
fn golden_agent_hold<T: Serialize + DeserializeOwned>(
    golden: &mut Golden,
    file: &str,
    message: &T,
) {
    assert_eq!(
        agent::encode(message).unwrap(),
        codec::encode(message).unwrap(),
        "{file}"
    );
    golden.hold_value(file, message);
}

#[test]
fn golden_store() {
    let mut golden = Golden::open("store", "docs/lifecycle.md, \"What is stored\"");
    let application: ApplicationRecord = value(json!({
        "name": "a", "modules": ["/m.so"], "settings": "{}", "auto_create": true,
        "created_unix_ms": 1_700_000_000_000_u64, "key_id": 2, "secret": bytes32(9),
    }));
    golden.hold_value("application", &application);
    let process: ProcessRecord = value(json!({
        "application": "a", "name": "p", "incarnation": 7, "life": 5, "state": "swapped", "node": "n",
        "swap_generation": 2, "images": true, "stopping": false,
        "error": null, "swapped": true,
    }));
    golden.hold_value("process", &process);
    let token: TokenRecord = value(json!({
        "hash": bytes32(3), "application": "a", "label": "l",
        "created_unix_ms": 1_700_000_000_000_u64,
    }));
    golden.hold_value("token", &token);
    let transfer: TransferRecord = value(json!({
        "application": "a", "name": "p", "from_node": "n", "from_incarnation": 7,
        "to_node": "m", "to_incarnation": 9, "committed": true,
    }));
    golden.hold_value("transfer", &transfer);
    golden.close();
}

#[test]
fn golden_transfer() {
    let mut golden = Golden::open("transfer", "docs/wire.md, \"Transfer\"");
    let header = |bytes: &[u8]| {
        vec![Field {
            name: "header".into(),
            bytes: bytes.into(),
        }]
    };
    golden.hold("word-header", &header(&WORD_HEADER));
    golden.hold("piece-header", &header(&piece_header(300)));
    for (file, json) in [
        ("begin", json!({"Begin": {"token": TOKEN}})),
        ("have", json!({"Have": {"round": 2}})),
        ("complete", json!("Complete")),
    ] {
        golden.hold_value(file, &value::<FromTarget>(json));
    }
    let object = json!({"Object": {"key": "k", "version": 300, "written_unix_ms": 70_000}});
    let whats = [object, json!("Mailbox"), json!("Body"), json!("Sessions")];
    let file = json!({"File": {"name": b"f\xff", "mode": 0o750}});
    let entries: Vec<_> = whats
        .into_iter()
        .chain([file])
        .map(|what| json!({"what": what, "bytes": 300}))
        .collect();
    for (file, json) in [
        ("entries", json!({"Entries": entries})),
        ("deleted", json!({"Deleted": ["k"]})),
        ("round", json!({"Round": {"round": 1}})),
        (
            "end",
            json!({"End": {"vouched": [1, 2], "state_version": 9}}),
        ),
        ("failed", json!({"Failed": {"error": "no"}})),
    ] {
        golden.hold_value(file, &value::<FromSource>(json));
    }
    golden.close();
}

/// The numbers that travel instead of names, one a line.
#[test]
fn golden_codes() {
    let mut golden = Golden::open("codes", "docs/wire.md, its tables of codes");
    let kinds =
        (0..=u8::MAX).filter_map(|code| FrameKind::from_code(code).ok().map(|of| (code, of)));
    golden.hold("frame-kinds", &lines(kinds));
    let kinds = (0..=u8::MAX).filter_map(|code| Kind::from_code(code).map(|of| (code, of)));
    golden.hold("message-kinds", &lines(kinds));
    let statuses = (0..=u16::MAX).filter_map(|code| Status::from_code(code).map(|of| (code, of)));
    golden.hold("statuses", &lines(statuses));
    let roles = (0..=u8::MAX).filter_map(|code| Role::from_code(code).map(|of| (code, of)));
    golden.hold("roles", &lines(roles));
    let reasons =
        (0..=u16::MAX).filter_map(|code| RefuseReason::from_code(code).map(|of| (code, of)));
    golden.hold("refusals", &lines(reasons));
    golden.close();
}

fn lines<C: std::fmt::Display, T: std::fmt::Debug>(
    codes: impl Iterator<Item = (C, T)>,
) -> Vec<Field> {
    codes
        .map(|(code, of)| Field {
            name: format!("{of:?}"),
            bytes: format!("{code} {of:?}\n").into(),
        })
        .collect()
}

/// The function ABI: size and place of everything in the tables, on 64-bit machines.
#[test]
#[cfg(target_pointer_width = "64")]
fn golden_abi() {
    use praas_runtime::abi::*;
    use std::mem::offset_of;

    macro_rules! table {
        ($table:ident { $($field:ident)* }) => {{
            let mut text = vec![(stringify!($table), size_of::<$table>())];
            $(text.push((stringify!($field), offset_of!($table, $field)));)*
            text
        }};
    }
    let mut golden = Golden::open("abi", "docs/abi.md, its tables");
    let tables = [
        table!(Bytes { ptr len }),
        table!(RawView { bytes version handle }),
        table!(MessageView { source payload }),
        table!(InvocationId { client_low client_high sequence }),
        table!(FunctionTable { size flags name entry concurrency time_ms memory_bytes }),
        table!(BatchOutcome { view code reserved }),
        table!(ModuleTable { size abi_version function_count name functions }),
        table!(HostTable {
            size output_alloc error_set error_text name incarnation cancelled deadline_left_us
            view_release state_put state_view state_delete state_list state_compare_swap
            state_append message_put message_get invoke world log invoke_one_way invoke_batch
            peer_state state_alloc state_commit message_broadcast invocation_id state_put_view
            state_dir
        }),
    ];
    for table in tables {
        let (name, size) = table[0];
        let mut fields = vec![Field {
            name: "size of the table".into(),
            bytes: format!("{size} bytes\n").into(),
        }];
        fields.extend(table[1..].iter().map(|(field, offset)| Field {
            name: (*field).into(),
            bytes: format!("{offset} {field}\n").into(),
        }));
        golden.hold(name, &fields);
    }
    let numbers: Vec<(&str, i64)> = vec![
        ("ABI_VERSION", ABI_VERSION.into()),
        ("FLAG_SHORT", FLAG_SHORT as i64),
        ("FLAG_LONG", FLAG_LONG as i64),
        ("FLAG_IDEMPOTENT", FLAG_IDEMPOTENT as i64),
        ("MESSAGE_PEEK", MESSAGE_PEEK.into()),
        ("BROADCAST_TO_MAX", BROADCAST_TO_MAX.into()),
        ("NOT_FOUND", code::NOT_FOUND.into()),
        ("CONFLICT", code::CONFLICT.into()),
        ("LIMIT_REACHED", code::LIMIT_REACHED.into()),
        ("BAD_ARGUMENT", code::BAD_ARGUMENT.into()),
        ("UNAVAILABLE", code::UNAVAILABLE.into()),
        ("CORRUPT", code::CORRUPT.into()),
        ("FORBIDDEN", code::FORBIDDEN.into()),
    ];
    golden.hold(
        "numbers",
        &lines(numbers.into_iter().map(|(name, n)| (n, name))),
    );
    assert_eq!(MODULE_SYMBOL, b"praas_module_v1\0");
    golden.close();
}

/// The tables of the documents, against the golden files: a number that is changed in one place
/// only is found.
#[test]
fn golden_numbers_are_the_documents() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    let wire = read("docs/wire.md");
    let abi = read("docs/abi.md");
    let mut wrong = Vec::new();
    for file in [
        "frame-kinds",
        "message-kinds",
        "statuses",
        "roles",
        "refusals",
    ] {
        for line in read(&format!("tests/golden/codes/{file}")).lines() {
            let (code, name) = line.split_once(' ').unwrap();
            let lower = name.to_lowercase();
            let forms = [
                format!("| {code} | {name}"),
                format!("| {code} {name} |"),
                format!("{code} {lower}"),
            ];
            if !forms.iter().any(|form| wire.contains(form)) {
                wrong.push(format!("docs/wire.md: {line} ({file})"));
            }
        }
    }
    for table in [
        "Bytes",
        "RawView",
        "MessageView",
        "InvocationId",
        "FunctionTable",
        "BatchOutcome",
        "ModuleTable",
        "HostTable",
    ] {
        let text = read(&format!("tests/golden/abi/{table}"));
        let (size, fields) = text.split_once(" bytes\n").unwrap();
        if !abi.contains(&format!("**{table}** ({size})")) {
            wrong.push(format!("docs/abi.md: {table} has {size} bytes"));
        }
        for line in fields.lines() {
            let (offset, field) = line.split_once(' ').unwrap();
            let forms = [
                format!("| {offset} | {field} |"),
                format!("{offset} `{field}`"),
            ];
            if !forms.iter().any(|form| abi.contains(form)) {
                wrong.push(format!("docs/abi.md: {table}: {line}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "not in the documents:\n{}",
        wrong.join("\n")
    );
}
