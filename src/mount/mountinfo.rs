//! Which of the mounts that this process sees are those of stfs, and where.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::Error;
pub use crate::source::local::mountinfo::{FS_TYPE, Mount, mounts};

/// The mount at exactly `point`; of several on top of each other the uppermost.
pub fn mount_at(point: &Path) -> io::Result<Option<Mount>> {
    let mut mounts = mounts()?;
    mounts.reverse();
    Ok(mounts.into_iter().find(|mount| mount.point == point))
}

/// Those of the mounts that are of stfs.
pub fn stfs_mounts() -> io::Result<Vec<Mount>> {
    Ok(mounts()?.into_iter().filter(Mount::is_stfs).collect())
}

/// The stfs mount that `path`, which is absolute and free of links, lies in.
pub fn mount_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut mounts = stfs_mounts()?;
    mounts.retain(|mount| path.starts_with(&mount.point));
    Ok(mounts
        .into_iter()
        .map(|mount| mount.point)
        .max_by_key(|point| point.as_os_str().len()))
}

/// Whose mount a FUSE mount is.
pub fn user(mount: &Mount) -> Option<u32> {
    let mut options = mount.options.to_str()?.split(',');
    options.find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
}

/// Which of `mounts` shows what is at `path`, which is absolute and free of links.
pub fn containing<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let containing = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    // The last of several: the uppermost.
    containing.max_by_key(|mount| mount.point.as_os_str().len())
}

/// The most symbolic links that are followed, as by the kernel.
const LINKS: usize = 40;

/// `path` as the table writes it, absolute and free of symbolic links, also where its
/// last component is missing. No file system that a process serves is asked, since it
/// may never answer: what lies in one is taken as it is written.
///
/// # Errors
/// A component cannot be passed.
pub fn locate(path: &Path) -> Result<PathBuf, Error> {
    let failed = Error::io(path, "look at it");
    let mounts = mounts().map_err(Error::io(path, "read the mount table"))?;
    let mut place = PathBuf::from("/");
    let mut links = 0;
    // What is still to be walked, the next step last, and whether a link says so.
    let mut steps = vec![];
    let walk = |steps: &mut Vec<(PathBuf, bool)>, path: &Path, linked| {
        let components = path.components().rev();
        steps.extend(components.map(|step| (PathBuf::from(step.as_os_str()), linked)));
    };
    walk(
        &mut steps,
        &std::path::absolute(path).map_err(&failed)?,
        false,
    );
    while let Some((step, linked)) = steps.pop() {
        if step == Path::new("..") {
            place.pop();
            continue;
        }
        // A step to the root begins anew.
        let next = place.join(&step);
        let served = containing(&mounts, &next)
            .is_some_and(|mount| mount.fs_type.as_bytes().starts_with(b"fuse"));
        let link = match served {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => fs::read_link(&next),
        };
        match link {
            Ok(_) if links == LINKS => {
                return Err(failed(io::Error::from_raw_os_error(libc::ELOOP)));
            }
            Ok(target) => {
                links += 1;
                walk(&mut steps, &target, true);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::InvalidInput => place = next,
                io::ErrorKind::NotFound if !steps.is_empty() => {
                    return Err(Error::NoParent {
                        path: path.to_owned(),
                        parent: path.parent().unwrap_or(&place).to_owned(),
                    });
                }
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                    if !linked && steps.is_empty() =>
                {
                    place = next;
                }
                _ => return Err(failed(error)),
            },
        }
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn this_process_has_a_root() {
        assert!(mount_at(Path::new("/proc")).unwrap().is_some());
    }

    #[test]
    fn places_are_found_through_links_as_the_kernel_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a/b", root.join("relative")).unwrap();
        symlink(root.join("a"), root.join("absolute")).unwrap();
        symlink("none", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for path in [
            "a/b",
            "relative",
            "relative/..",
            "absolute/b/./",
            "absolute/../relative",
            "",
        ] {
            let path = root.join(path);
            assert_eq!(locate(&path).unwrap(), path.canonicalize().unwrap());
        }
        assert_eq!(
            locate(&root.join("absolute/new")).unwrap(),
            root.join("a/new")
        );
        for path in ["none/new", "none/.."] {
            let error = locate(&root.join(path)).unwrap_err();
            assert!(matches!(error, Error::NoParent { .. }), "{error}");
        }
        for path in ["dangling", "loop", "loop/new"] {
            let error = locate(&root.join(path)).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(locate(Path::new("src")).unwrap(), here.join("src"));
    }

    #[test]
    fn the_uppermost_mount_shows_what_is_at_a_path() {
        let mounts: Vec<_> = ["/ ", "/a ", "/a/b ", "/a/b ", "/ab "]
            .iter()
            .enumerate()
            .map(|(id, point)| format!("{id} 1 0:{id} / {point}rw - fuse.x s ro,user_id={id}"))
            .map(|line| Mount::parse(line.as_bytes()).unwrap())
            .collect();
        for (path, id) in [("/", 0), ("/x", 0), ("/a", 1), ("/a/b/c", 3), ("/ab", 4)] {
            let mount = containing(&mounts, Path::new(path)).unwrap();
            assert_eq!((mount.id, user(mount)), (id, Some(id as u32)), "{path}");
        }
    }
}
