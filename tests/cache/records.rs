//! What tells one record from another.

use std::collections::HashSet;

use stfs::cache::{Directory, Records, Subject};
use stfs::checkpoint::Promise;
use stfs::source::Identity;

#[test]
fn a_record_is_of_one_identity_one_kind_of_name_and_one_root() {
    let identity = Identity {
        device: 0,
        inode: 0,
        size: 0,
        modified: (0, 0),
        changed: (0, 0),
    };
    let about = |identity, promise| Subject { identity, promise };
    let mut subjects: Vec<Subject> = [Promise::Checkpoint, Promise::Safetensors, Promise::Nothing]
        .map(|promise| about(identity, promise))
        .into();
    let changes: [fn(&mut Identity); 7] = [
        |it| it.device = 1,
        |it| it.inode = 1,
        |it| it.size = 1,
        |it| it.modified.0 = 1,
        |it| it.modified.1 = 1,
        |it| it.changed.0 = 1,
        |it| it.changed.1 = 1,
    ];
    for change in changes {
        let mut other = identity;
        change(&mut other);
        subjects.push(about(other, Promise::Nothing));
    }
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path()).unwrap();
    let roots = [None, Some(""), Some("ema"), Some("ema.")];
    let names: HashSet<_> = roots
        .iter()
        .flat_map(|root| {
            let records = Records::new(directory.clone(), root.map(str::to_string));
            let names: Vec<_> = subjects.iter().map(|it| records.name(it)).collect();
            names
        })
        .collect();
    assert_eq!(names.len(), roots.len() * subjects.len());
}
