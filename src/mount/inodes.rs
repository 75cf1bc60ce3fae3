//! Inode numbers, and which of them the kernel knows.
//!
//! A number is a keyed hash of the node's key. `readdir` can therefore name the
//! number that a later `stat` will show without keeping anything, and a file
//! that was replaced, whose key is another one, gets another number: who reads
//! the old file goes on reading the old file.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::view::{Contents, Node, NodeKey};

/// The number of the root, fixed by the protocol.
pub const ROOT: u64 = 1;

/// Something with an identity of its own.
pub trait Keyed: Clone {
    type Key: Hash + Eq;
    fn key(&self) -> &Self::Key;
}

impl Keyed for Node {
    type Key = NodeKey;
    fn key(&self) -> &NodeKey {
        Node::key(self)
    }
}

/// The nodes that the kernel holds references to.
pub struct Inodes<N, S = RandomState> {
    hasher: S,
    known: Mutex<HashMap<u64, Known<N>>>,
}

struct Known<N> {
    node: N,
    /// References that the kernel has been given and has not yet given back.
    lookups: u64,
    pages: Pages,
}

/// What the page cache may hold of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    None,
    Of(Contents),
    Unknown,
}

impl<N: Keyed> Inodes<N> {
    pub fn new(root: N) -> Self {
        Self::with_hasher(root, RandomState::new())
    }
}

impl<N: Keyed, S: BuildHasher> Inodes<N, S> {
    fn with_hasher(root: N, hasher: S) -> Self {
        let root = Known {
            node: root,
            lookups: 1,
            pages: Pages::None,
        };
        Self {
            hasher,
            known: Mutex::new(HashMap::from([(ROOT, root)])),
        }
    }

    /// The node behind a number the kernel knows.
    pub fn get(&self, number: u64) -> Option<N> {
        self.lock().get(&number).map(|known| known.node.clone())
    }

    /// The number of `node`, with no reference counted. It stays the number of
    /// that node unless another node with the same hash is counted first.
    pub fn number(&self, node: &N) -> u64 {
        self.find(&self.lock(), node)
    }

    /// The number of `node`, with one more reference counted. Of nodes with equal
    /// keys the last one counts: a file that goes by several names is found under
    /// the one that was looked up last, and the others may be gone.
    pub fn count(&self, node: N) -> u64 {
        let mut known = self.lock();
        let number = self.find(&known, &node);
        match known.entry(number) {
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                known.node = node;
                known.lookups += 1;
            }
            Entry::Vacant(entry) => {
                entry.insert(Known {
                    node,
                    lookups: 1,
                    pages: Pages::None,
                });
            }
        }
        number
    }

    /// What is known of the node behind a number is from here on what `node` says, if it
    /// is still the same.
    pub fn renew(&self, number: u64, node: N) {
        let mut known = self.lock();
        let known = known.get_mut(&number);
        if let Some(known) = known.filter(|known| known.node.key() == node.key()) {
            known.node = node;
        }
    }

    /// Whether the page cache holds nothing else of the inode, which is opened, than its
    /// `contents` now. What is unknown is not held to be the same.
    pub fn keeps_pages(&self, number: u64, contents: Option<Contents>) -> bool {
        let pages = contents.map_or(Pages::Unknown, Pages::Of);
        let mut known = self.lock();
        let before = known.get_mut(&number);
        let before = before.map(|known| std::mem::replace(&mut known.pages, pages));
        pages != Pages::Unknown
            && before.is_some_and(|before| before == Pages::None || before == pages)
    }

    /// Gives back `lookups` references. Whether those were all.
    pub fn forget(&self, number: u64, lookups: u64) -> bool {
        if number == ROOT {
            return false;
        }
        if let Entry::Occupied(mut entry) = self.lock().entry(number) {
            let left = entry.get().lookups.saturating_sub(lookups);
            if left > 0 {
                entry.get_mut().lookups = left;
                return false;
            }
            entry.remove();
        }
        true
    }

    /// The first number from the key's hash upwards that is free or `node`'s own.
    fn find(&self, known: &HashMap<u64, Known<N>>, node: &N) -> u64 {
        let mut number = self.hasher.hash_one(node.key());
        loop {
            let taken = match number {
                0 | ROOT => true,
                _ => known
                    .get(&number)
                    .is_some_and(|other| other.node.key() != node.key()),
            };
            if !taken {
                return number;
            }
            number = number.wrapping_add(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Known<N>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Links, LocalTree, Tree};
    use std::hash::{BuildHasherDefault, Hasher};

    impl Keyed for &'static str {
        type Key = &'static str;
        fn key(&self) -> &&'static str {
            self
        }
    }

    /// Gives every key the hash zero.
    #[derive(Default)]
    struct Colliding;

    impl Hasher for Colliding {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, _: &[u8]) {}
    }

    fn colliding() -> Inodes<&'static str, BuildHasherDefault<Colliding>> {
        Inodes::with_hasher("root", BuildHasherDefault::default())
    }

    #[test]
    fn a_listed_number_is_the_later_number() {
        let inodes = Inodes::new("root");
        let listed = inodes.number(&"a");
        assert_eq!(inodes.get(listed), None);
        assert_eq!(inodes.count("a"), listed);
        assert_eq!(inodes.get(listed), Some("a"));
        assert_ne!(inodes.number(&"b"), listed);
    }

    #[test]
    fn a_node_lives_until_its_last_reference_is_given_back() {
        let inodes = Inodes::new("root");
        let number = inodes.count("a");
        assert_eq!(inodes.count("a"), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), Some("a"));
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), None);
    }

    /// A key with a name that is no part of it.
    #[derive(Clone, Debug, PartialEq)]
    struct Named(u8, &'static str);

    impl Keyed for Named {
        type Key = u8;
        fn key(&self) -> &u8 {
            &self.0
        }
    }

    #[test]
    fn the_name_looked_up_last_counts() {
        let inodes = Inodes::new(Named(0, "root"));
        let number = inodes.count(Named(7, "old"));
        assert_eq!(inodes.count(Named(7, "new")), number);
        assert_eq!(inodes.get(number), Some(Named(7, "new")));
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), Some(Named(7, "new")));
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), None);
    }

    #[test]
    fn pages_are_kept_while_they_are_of_what_the_file_holds() {
        let inodes = Inodes::new("root");
        let number = inodes.count("file");
        let dir = tempfile::tempdir().unwrap();
        let version = |bytes: &str| {
            std::fs::write(dir.path().join("f"), bytes).unwrap();
            let tree = LocalTree::open(dir.path(), Links::Anywhere).unwrap();
            *tree.open("f".as_ref()).unwrap().version()
        };
        let [old, new] = ["old", "newer"].map(|bytes| Some(Contents::of(&version(bytes))));
        let opened = [
            (old, true),
            (old, true),
            (new, false),
            (new, true),
            (None, false),
            (None, false),
            (new, false),
            (new, true),
            (old, false),
        ];
        for (step, (contents, kept)) in opened.into_iter().enumerate() {
            assert_eq!(inodes.keeps_pages(number, contents), kept, "{step}");
            assert_eq!(inodes.count("file"), number);
        }
        assert!(!inodes.keeps_pages(number + 1, old));
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let inodes = Inodes::new("root");
        inodes.forget(ROOT, u64::MAX);
        assert_eq!(inodes.get(ROOT), Some("root"));
    }

    #[test]
    fn equal_hashes_get_different_numbers() {
        let inodes = colliding();
        let (a, b) = (inodes.count("a"), inodes.count("b"));
        assert_ne!(a, b);
        for number in [a, b] {
            assert!(number > ROOT);
        }
        assert_eq!(inodes.count("b"), b);
        assert_eq!((inodes.get(a), inodes.get(b)), (Some("a"), Some("b")));
    }
}
