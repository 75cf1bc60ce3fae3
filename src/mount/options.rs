//! The words of `-o`, as mount(8) and fstab(5) write them.

use std::path::PathBuf;

use crate::budget;
use crate::cache::Limit;
use crate::view::{Promote, Tensors};

/// Who may use the mount besides the user who made it. The kernel keeps
/// everybody else out, root too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    #[default]
    Owner,
    OwnerAndRoot,
    Everyone,
}

/// One word with an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    NoExec,
    NoAtime,
    NonEmpty,
    Access(Access),
    Tensors(Tensors),
    ShowPickles,
    Threads(usize),
    LogFile(PathBuf),
    CacheDir(PathBuf),
    CacheSize(Limit),
    /// Bytes.
    Memory(u64),
    Promote(Promote),
}

/// The words of one `-o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<Word>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    #[error("`{0}`: stfs is read-only. Leave the word out")]
    Writable(String),
    #[error("`{0}`: the name and type of an stfs mount are fixed. Leave the word out")]
    Named(String),
    #[error("`{word}`: {wanted}")]
    Value { word: String, wanted: &'static str },
    #[error("`{0}`: no such option. `stfs mount --help` lists them")]
    Unknown(String),
}

/// Reads the words of one `-o`. They are separated by commas; `\,` is a comma
/// within a value and `\\` a backslash.
///
/// # Errors
/// A word that is unknown, or that asks for what stfs does not do.
pub fn words(text: &str) -> Result<Words, WordError> {
    split(text)
        .iter()
        .filter_map(|text| word(text).transpose())
        .collect::<Result<_, _>>()
        .map(Words)
}

/// Reads `show`, `hide` or `off`.
///
/// # Errors
/// Any other text.
pub fn tensors(text: &str) -> Result<Tensors, &'static str> {
    match text {
        "show" => Ok(Tensors::Show),
        "hide" => Ok(Tensors::Hide),
        "off" => Ok(Tensors::Off),
        _ => Err("must be show, hide or off"),
    }
}

/// The largest number of threads that may be asked for.
pub const MAX_THREADS: usize = 256;

/// Reads a number of threads, 1 to [`MAX_THREADS`].
///
/// # Errors
/// Any other text.
pub fn threads(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(threads @ 1..=MAX_THREADS) => Ok(threads),
        _ => Err("must be a number from 1 to 256"),
    }
}

/// Reads how much the cache may take: a number of [`bytes`].
///
/// # Errors
/// Any other text, and more than fits.
pub fn cache_size(text: &str) -> Result<Limit, &'static str> {
    bytes(text)
        .map(Limit::Bytes)
        .ok_or("must be a number of bytes, such as 20G or 500M")
}

/// Reads how much memory there is for work on files: a number of [`bytes`].
///
/// # Errors
/// Any other text, and less than is of use.
pub fn memory(text: &str) -> Result<u64, &'static str> {
    let bytes = bytes(text).filter(|bytes| *bytes >= budget::LEAST);
    bytes.ok_or("must be a number of bytes from 64M, such as 512M or 2G")
}

/// A number of bytes; `K`, `M`, `G` and `T` after it are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let unit = text.find(|char: char| !char.is_ascii_digit());
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let unit = match unit {
        "" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1_u64 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Reads `auto`, `always` or `never`.
///
/// # Errors
/// Any other text.
pub fn promote(text: &str) -> Result<Promote, &'static str> {
    match text {
        "auto" => Ok(Promote::Auto),
        "always" => Ok(Promote::Always),
        "never" => Ok(Promote::Never),
        _ => Err("must be auto, always or never"),
    }
}

/// `None` for a word that says what is the case anyway, or that is meant for
/// mount(8) and systemd.
fn word(text: &str) -> Result<Option<Word>, WordError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let wrong = |wanted| WordError::Value {
        word: text.to_owned(),
        wanted,
    };
    Ok(Some(match (name, value) {
        ("noexec", None) => Word::NoExec,
        ("noatime", None) => Word::NoAtime,
        ("nonempty", None) => Word::NonEmpty,
        ("allow_other", None) => Word::Access(Access::Everyone),
        ("allow_root", None) => Word::Access(Access::OwnerAndRoot),
        ("show_pickles", None) => Word::ShowPickles,
        ("tensors", Some(value)) => Word::Tensors(tensors(value).map_err(wrong)?),
        ("threads", Some(value)) => Word::Threads(threads(value).map_err(wrong)?),
        ("log_file", Some(value)) if !value.is_empty() => Word::LogFile(value.into()),
        ("cache_dir", Some(value)) if !value.is_empty() => Word::CacheDir(value.into()),
        ("cache_size", Some(value)) => Word::CacheSize(cache_size(value).map_err(wrong)?),
        ("memory", Some(value)) => Word::Memory(memory(value).map_err(wrong)?),
        ("promote", Some(value)) => Word::Promote(promote(value).map_err(wrong)?),
        (
            "tensors" | "threads" | "log_file" | "cache_dir" | "cache_size" | "memory" | "promote",
            _,
        ) => {
            return Err(wrong("needs a value"));
        }

        ("" | "ro" | "nodev" | "nosuid" | "default_permissions", None) => return Ok(None),
        ("exec" | "atime" | "relatime" | "diratime" | "nodiratime", None) => return Ok(None),
        ("defaults" | "_netdev" | "auto" | "noauto" | "nofail", None) => return Ok(None),
        ("user" | "users" | "nouser" | "owner" | "group", None) => return Ok(None),
        ("comment", Some(_)) => return Ok(None),
        (name, _) if name.starts_with("x-") => return Ok(None),

        ("rw", None) => return Err(WordError::Writable(text.to_owned())),
        ("fsname" | "subtype", _) => return Err(WordError::Named(text.to_owned())),
        _ => return Err(WordError::Unknown(text.to_owned())),
    }))
}

fn split(text: &str) -> Vec<String> {
    let mut words = vec![];
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => word.push(chars.next_if(|next| ",\\".contains(*next)).unwrap_or('\\')),
            ',' => words.push(std::mem::take(&mut word)),
            _ => word.push(char),
        }
    }
    words.push(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Word> {
        words(text).unwrap().0
    }

    #[test]
    fn words_with_an_effect() {
        assert_eq!(
            parsed("noexec,noatime,nonempty,allow_other,allow_root,show_pickles,threads=3"),
            [
                Word::NoExec,
                Word::NoAtime,
                Word::NonEmpty,
                Word::Access(Access::Everyone),
                Word::Access(Access::OwnerAndRoot),
                Word::ShowPickles,
                Word::Threads(3),
            ]
        );
        assert_eq!(parsed("cache_dir=/c"), [Word::CacheDir("/c".into())]);
        let size = Word::CacheSize(Limit::Bytes(3 << 30));
        assert_eq!(
            parsed("cache_size=3G,promote=never"),
            [size, Word::Promote(Promote::Never)]
        );
        assert_eq!(parsed("memory=64M"), [Word::Memory(64 << 20)]);
        assert_eq!(parsed("tensors=hide"), [Word::Tensors(Tensors::Hide)]);
        assert_eq!(parsed("tensors=off,"), [Word::Tensors(Tensors::Off)]);
        assert_eq!(
            parsed(r"log_file=/a\,b\\c\d,noexec"),
            [Word::LogFile(r"/a,b\c\d".into()), Word::NoExec]
        );
    }

    #[test]
    fn words_of_fstab_have_none() {
        let fstab = "defaults,ro,nodev,nosuid,_netdev,noauto,user,nofail,relatime,exec,\
                     x-systemd.automount,x-gvfs-name=a,comment=b,default_permissions";
        assert_eq!(parsed(fstab), []);
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn refusals_name_the_word() {
        for text in ["rw", "fsname=x", "subtype=y", "direct_io", "tensors=all"] {
            let error = words(&format!("ro,{text}")).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        for text in [
            "threads=0",
            "threads=257",
            "threads",
            "tensors",
            "log_file=",
            "cache_dir=",
            "cache_size=G",
            "cache_size=1X",
            "cache_size=99999999T",
            "memory",
            "memory=63M",
            "memory=some",
            "promote=yes",
        ] {
            assert!(
                matches!(words(text), Err(WordError::Value { .. })),
                "{text}"
            );
        }
        assert!(words("rw").unwrap_err().to_string().contains("read-only"));
    }
}
