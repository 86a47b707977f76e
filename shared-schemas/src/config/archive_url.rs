//! Where the archive is: a folder, or a place in an object store.

use std::fmt;
use std::path::{Path, PathBuf};

/// The archive's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ArchiveUrl {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A place in an object store. Its keys come from that store's usual environment variables.
    Store {
        /// Which store.
        kind: StoreKind,
        /// The bucket or container.
        bucket: String,
        /// The path within it, without `/` at either end; may be empty.
        path: String,
    },
}

/// An object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl StoreKind {
    const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];

    /// The URL's scheme.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }
}

impl ArchiveUrl {
    /// Reads one; relative folders are taken from `folder`.
    pub(crate) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').ok_or("it has no scheme")?;
        if scheme == "file" {
            let path = match rest.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err("behind `file://` comes a path from the root".to_owned()),
                None => rest,
            };
            return if path.is_empty() {
                Err("it names no folder".to_owned())
            } else {
                Ok(Self::Folder(folder.join(path)))
            };
        }
        let kind = StoreKind::ALL.into_iter().find(|kind| kind.scheme() == scheme);
        let kind = kind.ok_or_else(|| format!("`{scheme}:` is none of `file:`, `s3:`, `gs:`, `az:`"))?;
        let rest = rest
            .strip_prefix("//")
            .ok_or_else(|| format!("behind `{scheme}:` comes `//`"))?;
        if rest.contains(['?', '#', '@']) {
            return Err("keys and options don't belong in it; the store's environment variables hold them".to_owned());
        }
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(char::is_whitespace) {
            return Err("it names no bucket".to_owned());
        }
        let path = path.trim_matches('/');
        if !path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("its path has an empty part, `.` or `..`".to_owned());
        }
        Ok(Self::Store {
            kind,
            bucket: bucket.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file:{}", path.display()),
            Self::Store { kind, bucket, path } if path.is_empty() => write!(f, "{}://{bucket}", kind.scheme()),
            Self::Store { kind, bucket, path } => write!(f, "{}://{bucket}/{path}", kind.scheme()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let parse = |text| ArchiveUrl::parse(text, Path::new("/etc/hw")).map(|url| url.to_string());
        assert_eq!(parse("file:data/archive").unwrap(), "file:/etc/hw/data/archive");
        assert_eq!(parse("file:/data").unwrap(), "file:/data");
        assert_eq!(parse("file:///data").unwrap(), "file:/data");
        assert_eq!(parse("s3://bucket/a/b/").unwrap(), "s3://bucket/a/b");
        assert_eq!(parse("gs://bucket").unwrap(), "gs://bucket");
        for wrong in [
            "",
            "data",
            "file:",
            "file://data",
            "s3:bucket",
            "s3://",
            "s3://u@b/x",
            "ftp://a",
            "az://b/../c",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
