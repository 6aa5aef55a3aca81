//! The image's files as one layer: a compressed tar whose bytes depend on nothing but the files and one date.

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A file or folder of the image.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    path: String,
    mode: u32,
    /// `None` = a folder.
    bytes: Option<Vec<u8>>,
}

impl Entry {
    /// A folder; those above it come by themselves.
    pub(crate) fn folder(path: &str) -> Self {
        // /tmp is for everyone, as everywhere
        Entry { path: path.into(), mode: if path == "tmp" { 0o1777 } else { 0o755 }, bytes: None }
    }

    /// A file that can be run.
    pub(crate) fn program(path: &str, bytes: Vec<u8>) -> Self {
        Entry { path: path.into(), mode: 0o755, bytes: Some(bytes) }
    }

    /// A file that is read.
    pub(crate) fn text(path: &str, bytes: Vec<u8>) -> Self {
        Entry { path: path.into(), mode: 0o644, bytes: Some(bytes) }
    }
}

/// A layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The tar, compressed by gzip.
    pub(crate) compressed: Vec<u8>,
    /// SHA-256 of the tar before it was compressed, hexadecimal.
    pub(crate) diff_id: String,
    /// Bytes before compression.
    pub(crate) unpacked: usize,
}

impl Layer {
    /// Packs files; `date` in seconds since 1970.
    ///
    /// # Errors
    /// A path does not fit into a tar header.
    pub(crate) fn of(entries: &[Entry], date: u64) -> Result<Self> {
        let tar = tar(entries, date)?;
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        Ok(Layer { compressed: gzip.finish()?, diff_id: sha256(&tar), unpacked: tar.len() })
    }
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar with every folder before what is in it, sorted, owned by root.
pub(crate) fn tar(entries: &[Entry], date: u64) -> Result<Vec<u8>> {
    let mut all = entries.to_vec();
    for entry in entries {
        let above = entry.path.match_indices('/').map(|(at, _)| &entry.path[..at]);
        for folder in above {
            if all.iter().all(|known| known.path != folder) {
                all.push(Entry::folder(folder));
            }
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    let mut tar = Builder::new(Vec::new());
    for entry in &all {
        let mut header = Header::new_ustar();
        header.set_mode(entry.mode);
        header.set_mtime(date);
        header.set_uid(0);
        header.set_gid(0);
        let (kind, path) = match entry.bytes {
            Some(_) => (EntryType::Regular, entry.path.clone()),
            None => (EntryType::Directory, format!("{}/", entry.path)),
        };
        header.set_entry_type(kind);
        let bytes = entry.bytes.as_deref().unwrap_or_default();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes)?;
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_first_and_the_order_given_does_not_matter() {
        let a = Entry::program("usr/bin/a", b"a".to_vec());
        let b = Entry::text("etc/b", b"bb".to_vec());
        let one = Layer::of(&[a.clone(), b.clone(), Entry::folder("tmp")], 7).unwrap();
        let two = Layer::of(&[Entry::folder("tmp"), b, a], 7).unwrap();
        assert_eq!(one.compressed, two.compressed);
        assert_eq!(one.diff_id, two.diff_id);

        let mut unpacked = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(one.compressed.as_slice()), &mut unpacked).unwrap();
        assert_eq!((unpacked.len(), sha256(&unpacked)), (one.unpacked, one.diff_id));
        let mut found = Vec::new();
        for entry in tar::Archive::new(unpacked.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (7, 0, 0));
            found.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let expected =
            [("etc/", 0o755), ("etc/b", 0o644), ("tmp/", 0o1777), ("usr/", 0o755), ("usr/bin/", 0o755)];
        assert_eq!(found[..5], expected.map(|(path, mode)| (path.to_owned(), mode)));
        assert_eq!(found[5..], [("usr/bin/a".to_owned(), 0o755)]);
    }

    #[test]
    fn the_digest_is_sha_256() {
        // FIPS 180-4, the message "abc"
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
