//! Plans: made once, forgotten when there is no room, tried again after errors.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use stfs::cache::{Key, Plans};
use stfs::checkpoint::{Cause, Checkpoint, Refusal};
use stfs::convert::{Error, Plan};
use stfs::source::{self, Identity};

fn key(inode: u64) -> Key {
    Key {
        identity: Identity {
            device: 1,
            inode,
            size: 0,
            modified: (0, 0),
            changed: (0, 0),
        },
        architecture: None,
        beside: Arc::default(),
    }
}

fn empty() -> Result<Plan, Error> {
    Ok(Plan::new(Checkpoint::default(), 0, None)?)
}

fn broken() -> Result<Plan, Error> {
    Err(source::Error::Io(io::Error::other("broken disk")).into())
}

#[test]
fn many_callers_share_one_plan() {
    let plans = Plans::new(1 << 20);
    let made = AtomicUsize::new(0);
    let barrier = Barrier::new(16);
    let get = || {
        barrier.wait();
        let outcome = plans.get(&key(1), || {
            made.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            empty()
        });
        outcome.unwrap().unwrap()
    };
    let all: Vec<Arc<Plan>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(get)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(made.load(SeqCst), 1);
    assert!(all.iter().all(|plan| Arc::ptr_eq(plan, &all[0])));
}

#[test]
fn other_keys_do_not_wait() {
    let plans = Plans::new(1 << 20);
    let both_make = Barrier::new(2);
    std::thread::scope(|scope| {
        for inode in 0..2 {
            let (plans, both_make) = (&plans, &both_make);
            scope.spawn(move || {
                plans.get(&key(inode), || {
                    both_make.wait();
                    empty()
                })
            });
        }
    });
}

#[test]
fn refusals_are_kept_and_errors_are_not() {
    let plans = Plans::new(1 << 20);
    assert!(plans.get(&key(1), broken).is_err());
    let refuse = || Err(Refusal::new(Cause::Malformed, "no").into());
    assert!(plans.get(&key(1), refuse).unwrap().is_err());
    assert!(plans.get(&key(1), || panic!("is known")).unwrap().is_err());
}

/// Whoever waits for an attempt that fails makes one of its own.
#[test]
fn waiting_callers_try_again() {
    let plans = Plans::new(1 << 20);
    let attempts = AtomicUsize::new(0);
    let barrier = Barrier::new(4);
    let get = || {
        barrier.wait();
        plans.get(&key(1), || {
            std::thread::sleep(Duration::from_millis(20));
            match attempts.fetch_add(1, SeqCst) {
                0 => broken(),
                _ => empty(),
            }
        })
    };
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(get)).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results
            .filter(|result| !matches!(result, Ok(Ok(_))))
            .count()
    });
    assert_eq!((failed, attempts.load(SeqCst)), (1, 2));
}

#[test]
fn a_panic_leaves_the_key_usable() {
    let plans = Plans::new(1 << 20);
    let get = || plans.get(&key(1), || panic!("in the middle"));
    assert!(std::panic::catch_unwind(AssertUnwindSafe(get)).is_err());
    assert!(plans.get(&key(1), empty).unwrap().is_ok());
    assert!(plans.get(&key(1), || panic!("is known")).unwrap().is_ok());
}

#[test]
fn the_least_recently_used_is_forgotten() {
    let weight = empty().unwrap().weight();
    // An entry weighs more than its plan, and less than four kilobytes more.
    let plans = Plans::new(20 * (weight + 4096));
    let made = AtomicUsize::new(0);
    let get = |inode| {
        let outcome = plans.get(&key(inode), || {
            made.fetch_add(1, SeqCst);
            empty()
        });
        outcome.unwrap().unwrap();
    };
    for inode in 0..20 {
        get(inode);
    }
    (0..20).for_each(get);
    assert_eq!(made.load(SeqCst), 20, "there is room for 20");
    for inode in 20..1000 {
        get(0);
        get(inode);
    }
    assert_eq!(made.load(SeqCst), 1000, "0 is in use all the time");
    get(1);
    assert_eq!(made.load(SeqCst), 1001, "1 was forgotten");
}

#[test]
fn a_slot_may_be_forgotten_while_its_plan_is_made() {
    let weight = empty().unwrap().weight();
    let plans = Plans::new(4 * weight);
    let outcome = plans.get(&key(0), || {
        for inode in 1..100 {
            plans.get(&key(inode), empty).unwrap().unwrap();
        }
        empty()
    });
    assert!(outcome.unwrap().is_ok());
    // Its weight was not counted for good: there is still room for another.
    plans.get(&key(200), empty).unwrap().unwrap();
    plans
        .get(&key(200), || panic!("is known"))
        .unwrap()
        .unwrap();
}

#[test]
fn failures_do_not_pile_up_beside_a_plan_that_is_larger_than_the_budget() {
    let plans = Plans::new(1);
    for inode in 0..1000 {
        assert!(plans.get(&key(inode), broken).is_err());
    }
    plans.get(&key(1), empty).unwrap().unwrap();
    plans.get(&key(1), || panic!("is known")).unwrap().unwrap();
}
