//! What a hostile pickle costs in memory. The only test of its process, since
//! it counts what the whole process allocates.

use std::alloc::System;

use cap::Cap;
use stfs::pickle::{ErrorKind, Limits, parse};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const MIB: usize = 1 << 20;

/// Beginnings, and what makes objects when it is repeated.
const BOMBS: &[(&[u8], &[u8])] = &[
    // Calls of the results of calls, objects with states and items.
    (b"cm\nf\n", b")R"),
    (b"", b"(im\nC\nNbNaNNs"),
    // Tuples in tuples, hashable and not.
    (b"N", b"\x85"),
    (b"]", b"\x85"),
    // Containers.
    (b"", b"]"),
    (b"", b"]Na"),
    (b"", b"}NNs"),
    (b"", b"\x8f(N\x90"),
    (b"](", b"2"),
    (b"(", b"M\x00\x01"),
    // The stack and the memo.
    (b"N", b"2"),
    (b"", b"("),
    (b"N", b"\x94"),
    (b"", b"]\x94"),
    (b"N", b"r\xff\xff\xff\xff0N"),
    (b"N", b"p9999999\n"),
];

fn bombs(length: usize) -> impl Iterator<Item = Vec<u8>> {
    let repeated = BOMBS.iter().map(move |(start, repeated)| {
        let rest = repeated.iter().cycle().take(length - start.len());
        start.iter().chain(rest).copied().collect()
    });
    let numbered = move |opcodes: fn(u32) -> String| {
        let mut bomb: Vec<u8> = b"N".to_vec();
        let numbers = (0..).take(length / 8);
        bomb.extend(numbers.flat_map(|n| opcodes(n).into_bytes()).take(length));
        bomb
    };
    repeated.chain([
        numbered(|n| format!("c{n}\nf\n")),
        numbered(|n| format!("p{}\n", 9_000_000 + n)),
    ])
}

/// The most that one of the bombs allocates, and how many are refused for it.
fn cost(length: usize) -> (usize, usize) {
    let mut most = 0;
    let mut refused = 0;
    for bomb in bombs(length) {
        let before = ALLOCATOR.allocated();
        let error = parse(&bomb, &Limits::default()).unwrap_err();
        let memory = matches!(error.kind, ErrorKind::Limit { what, .. } if what.contains("memory"));
        refused += usize::from(memory);
        most = most.max(ALLOCATOR.max_allocated().saturating_sub(before));
    }
    (most, refused)
}

#[test]
fn bombs_are_cheap() {
    let (most, refused) = cost(MIB);
    assert!(most <= 64 * MIB, "{most}");
    assert!(refused > 0);

    // 32 MiB, and 24 bytes for each of the pickle.
    let (most, refused) = cost(4 * MIB);
    assert!(most <= (32 + 24 * 4) * MIB, "{most}");
    assert!(refused > 3, "{refused}");
}
