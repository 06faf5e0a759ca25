//! A root from a container image: an OCI archive (`skopeo copy … oci-archive:FILE`), or what `docker save` writes.
//!
//! Such a file is a tar archive of blobs. Blobs that are named by their digest are checked against it. Layers are put on
//! top of each other in the tree alone: nothing is unpacked below a path of this host, and links lead nowhere outside.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::source::{Loaded, OnRead, SourceError, add_from_tar, check_headers, plain_tar};
use super::tree::{Node, Tree, TreeError, clean_path};

/// Largest description (index, manifest, configuration) that is read.
const DESCRIPTION_BYTES_MAX: u64 = 4 << 20;
/// Most layers.
const LAYERS_MAX: usize = 128;
/// Most entries of the archive itself.
const BLOBS_MAX: usize = 4_096;
/// How deep an index may name another index.
const INDEX_DEPTH_MAX: usize = 4;
/// In a layer: what is called so is not there any more.
const WHITEOUT: &[u8] = b".wh.";
/// In a layer: what lower layers have in this directory is not there any more.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Reads a container image. What it unpacks lies in `scratch`, which must outlive the tree.
pub(super) fn load(given: &Path, scratch: &Path, on_read: OnRead<'_>) -> Result<Loaded, SourceError> {
    let archive = Archive::open(given, scratch, on_read)?;
    let (layers, configuration) = archive.described()?;
    if layers.len() > LAYERS_MAX {
        return Err(
            archive.damaged(format!("it has {} layers, at most {LAYERS_MAX} are possible", layers.len()))
        );
    }
    let mut tree = Tree::default();
    for (number, layer) in layers.iter().enumerate() {
        let packed = archive.unpack(layer, &scratch.join(format!("blob-{number}")))?;
        let plain = plain_tar(&packed, &scratch.join(format!("layer-{number}.tar")), on_read)?;
        add_layer(&mut tree, &plain, on_read).map_err(|error| match error {
            LayerError::Archive(source) => {
                archive.damaged(format!("its layer {} is damaged: {source}", number + 1))
            }
            LayerError::Tree(error) => error.into(),
        })?;
    }
    let mut notes = Vec::new();
    if let Some(user) = configuration.user.filter(|user| !["", "0", "root"].contains(&user.as_str())) {
        notes.push(format!("the program runs as root, not as `{user}`: it has the machine for itself"));
    }
    let program =
        script(&configuration.entrypoint, &configuration.cmd, &configuration.env, &configuration.dir);
    Ok(Loaded { tree, notes, program })
}

/// The archive, plain, and where its files are.
struct Archive {
    given: PathBuf,
    plain: PathBuf,
    blobs: BTreeMap<Vec<u8>, (u64, u64)>,
}

/// How a blob is named.
#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// `index.json` and indexes that it names, and manifests.
#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// An entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// What the image wants run.
#[derive(Debug, Default, Deserialize)]
struct Configuration {
    #[serde(rename = "User")]
    user: Option<String>,
    #[serde(rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(rename = "Cmd")]
    cmd: Option<Vec<String>>,
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
    #[serde(rename = "WorkingDir")]
    dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct ConfigurationFile {
    architecture: Option<String>,
    config: Option<Configuration>,
}

impl Archive {
    fn open(given: &Path, scratch: &Path, on_read: OnRead<'_>) -> Result<Self, SourceError> {
        let plain = plain_tar(given, &scratch.join("archive.tar"), on_read)?;
        let mut archive = Self { given: given.to_owned(), plain, blobs: BTreeMap::new() };
        archive.list().map_err(|source| archive.fault(source))?;
        Ok(archive)
    }

    fn list(&mut self) -> io::Result<()> {
        check_headers(File::open(&self.plain)?)?;
        let mut archive = tar::Archive::new(File::open(&self.plain)?);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = clean_path(&entry.path_bytes()).map_err(io::Error::other)?;
            self.blobs.insert(path, (entry.raw_file_position(), entry.size()));
            if self.blobs.len() > BLOBS_MAX {
                return Err(io::Error::other(format!("it has more than {BLOBS_MAX} files")));
            }
        }
        Ok(())
    }

    fn fault(&self, source: io::Error) -> SourceError {
        SourceError::Archive { path: self.given.clone(), source }
    }

    fn damaged(&self, why: String) -> SourceError {
        self.fault(io::Error::other(why))
    }

    /// The layers' names, lowest first, and what is to be run.
    fn described(&self) -> Result<(Vec<String>, Configuration), SourceError> {
        let (layers, configuration) = if self.blobs.contains_key(b"index.json".as_slice()) {
            self.by_index()?
        } else {
            let saved: Vec<Saved> = self.description("manifest.json")?;
            let [saved] = saved.try_into().map_err(|saved: Vec<Saved>| {
                self.damaged(format!("it holds {} images; save one alone", saved.len()))
            })?;
            (saved.layers, saved.config)
        };
        let file: ConfigurationFile = self.description(&configuration)?;
        match file.architecture.as_deref() {
            None | Some("amd64") => Ok((layers, file.config.unwrap_or_default())),
            Some(other) => Err(self.damaged(format!("it is an image for {other}; take the one for amd64"))),
        }
    }

    fn by_index(&self) -> Result<(Vec<String>, String), SourceError> {
        let mut index: Index = self.description("index.json")?;
        for _ in 0..INDEX_DEPTH_MAX {
            if let Some(configuration) = &index.config {
                let layers = index.layers.iter().map(|layer| blob(&layer.digest)).collect();
                return Ok((layers, blob(&configuration.digest)));
            }
            let ours = |found: &&Descriptor| {
                found.platform.as_ref().is_none_or(|of| of.architecture == "amd64" && of.os == "linux")
            };
            let mut fitting = index.manifests.iter().filter(ours);
            let (Some(one), None) = (fitting.next(), fitting.next()) else {
                return Err(
                    self.damaged("it does not hold one image for linux/amd64; save that alone".to_owned())
                );
            };
            index = self.description(&blob(&one.digest))?;
        }
        Err(self.damaged("its indexes are nested too deep".to_owned()))
    }

    fn description<T: DeserializeOwned>(&self, name: &str) -> Result<T, SourceError> {
        let (offset, bytes) = self.place(name)?;
        if bytes > DESCRIPTION_BYTES_MAX {
            return Err(self.damaged(format!("`{name}` has {bytes} bytes")));
        }
        let mut text = Vec::new();
        let mut file = self.at(offset)?.take(bytes);
        file.read_to_end(&mut text).map_err(|source| self.fault(source))?;
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        digest.update(&text);
        self.check_digest(name, digest)?;
        serde_json::from_slice(&text)
            .map_err(|error| self.damaged(format!("`{name}` is not understood: {error}")))
    }

    /// Copies a blob to a file of its own.
    fn unpack(&self, name: &str, to: &Path) -> Result<PathBuf, SourceError> {
        let (offset, bytes) = self.place(name)?;
        let failed = |source| SourceError::Unreadable { path: to.to_owned(), source };
        super::space::require(to.parent().unwrap_or(to), bytes)?;
        let mut out = File::create(to).map_err(failed)?;
        let mut file = self.at(offset)?.take(bytes);
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        let mut part = vec![0; 1 << 16];
        loop {
            let count = file.read(&mut part).map_err(|source| self.fault(source))?;
            let read = part.get(..count).unwrap_or_default();
            if read.is_empty() {
                break;
            }
            digest.update(read);
            out.write_all(read).map_err(failed)?;
        }
        self.check_digest(name, digest)?;
        Ok(to.to_owned())
    }

    fn place(&self, name: &str) -> Result<(u64, u64), SourceError> {
        let missing =
            || self.damaged(format!("it has no `{name}`; give an OCI archive, or what `docker save` writes"));
        self.blobs.get(name.as_bytes()).copied().ok_or_else(missing)
    }

    fn at(&self, offset: u64) -> Result<File, SourceError> {
        let mut file = File::open(&self.plain).map_err(|source| self.fault(source))?;
        file.seek(SeekFrom::Start(offset)).map_err(|source| self.fault(source))?;
        Ok(file)
    }

    fn check_digest(&self, name: &str, digest: ring::digest::Context) -> Result<(), SourceError> {
        let Some(expected) = name.strip_prefix("blobs/sha256/") else { return Ok(()) };
        let mut found = String::new();
        for byte in digest.finish().as_ref() {
            // Writing to a string cannot fail.
            let _ = write!(found, "{byte:02x}");
        }
        if found == expected {
            Ok(())
        } else {
            Err(self.damaged(format!("`{name}` is not what its digest says")))
        }
    }
}

/// Where the blob of a digest is. A digest that is none names no file.
fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// Why a layer is not added.
enum LayerError {
    Archive(io::Error),
    Tree(TreeError),
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        Self::Archive(error)
    }
}

/// Puts a layer on top of what is there: first what it takes away, which is never of its own, then what it brings.
fn add_layer(tree: &mut Tree, plain: &Path, on_read: OnRead<'_>) -> Result<(), LayerError> {
    check_headers(File::open(plain)?)?;
    let mut archive = tar::Archive::new(File::open(plain)?);
    for entry in archive.entries_with_seek()? {
        let path = clean_path(&entry?.path_bytes()).map_err(io::Error::other)?;
        let (above, name) = split(&path);
        let above = tree.follow(above).unwrap_or_else(|| above.to_vec());
        if name == OPAQUE {
            tree.remove_below(&above);
        } else if let Some(gone) = name.strip_prefix(WHITEOUT) {
            tree.remove(&joined(&above, gone));
        }
    }
    let file: Arc<Path> = plain.into();
    let mut archive = tar::Archive::new(File::open(plain)?);
    let (mut entries, mut bytes) = (0, 0);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = clean_path(&entry.path_bytes()).map_err(io::Error::other)?;
        let (above, name) = split(&path);
        if name.starts_with(WHITEOUT) {
            continue;
        }
        // Below a link to a directory means: in that directory. It is one of the tree's own.
        let above = tree.follow(above).unwrap_or_else(|| above.to_vec());
        let path = if path.is_empty() { path } else { joined(&above, name) };
        let is_directory = entry.header().entry_type().is_dir();
        match tree.get(&path).map(|there| &there.node) {
            Some(Node::Directory) if !is_directory => tree.remove(&path),
            // A directory over a link to one leaves the link, as other tools do.
            Some(Node::Symlink(_)) if is_directory && tree.is_directory(&path) => continue,
            Some(_) if is_directory => {
                if !tree.is_directory(&path) {
                    tree.remove(&path);
                }
            }
            Some(_) | None => {}
        }
        entries += 1;
        bytes += entry.size();
        on_read(entries, bytes);
        add_from_tar(tree, &file, &entry, path).map_err(LayerError::Tree)?;
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

fn joined(above: &[u8], name: &[u8]) -> Vec<u8> {
    if above.is_empty() { name.to_vec() } else { [above, b"/", name].concat() }
}

/// A program that does what the image wants done; `None` if it wants nothing.
fn script(
    entrypoint: &Option<Vec<String>>,
    cmd: &Option<Vec<String>>,
    env: &Option<Vec<String>>,
    dir: &Option<String>,
) -> Option<String> {
    let words: Vec<String> = entrypoint.iter().chain(cmd).flatten().map(|word| quoted(word)).collect();
    if words.is_empty() {
        return None;
    }
    let mut text =
        "#!/.reveille/busybox sh\nexport PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
            .to_owned();
    for (key, value) in env.iter().flatten().filter_map(|pair| pair.split_once('=')) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if key.bytes().all(plain) && key.starts_with(|first: char| !first.is_ascii_digit()) {
            let _ = writeln!(text, "export {key}={}", quoted(value));
        }
    }
    if let Some(dir) = dir.as_deref().filter(|dir| !dir.is_empty()) {
        let _ = writeln!(text, "cd {}", quoted(dir));
    }
    let _ = writeln!(text, "exec {}", words.join(" "));
    Some(text)
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            if let Some(target) = content.strip_prefix("-> ") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, target).unwrap();
            } else if path.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, path, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
        }
        tar.into_inner().unwrap()
    }

    fn sha256(bytes: &[u8]) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// An OCI archive of these layers, the second one compressed, with that configuration.
    fn archive(layers: &[Vec<u8>], configuration: &str, bend: bool) -> Vec<u8> {
        let mut blobs = Vec::new();
        let mut add = |bytes: Vec<u8>| {
            let digest = sha256(&bytes);
            blobs.push((format!("blobs/sha256/{digest}"), bytes));
            format!(r#"{{"mediaType":"x","digest":"sha256:{digest}","size":1}}"#)
        };
        let layers: Vec<String> = layers
            .iter()
            .enumerate()
            .map(|(number, layer)| {
                if number == 1 {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(layer).unwrap();
                    add(gzip.finish().unwrap())
                } else {
                    add(layer.clone())
                }
            })
            .collect();
        let configuration = add(configuration.as_bytes().to_vec());
        let manifest = format!(r#"{{"config":{configuration},"layers":[{}]}}"#, layers.join(","));
        let manifest = add(manifest.into_bytes());
        blobs.push(("index.json".to_owned(), format!(r#"{{"manifests":[{manifest}]}}"#).into_bytes()));
        if bend {
            blobs[0].1[600] ^= 1;
        }
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in &blobs {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes.as_slice()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn loaded(archive: &[u8]) -> Result<(tempfile::TempDir, Loaded), String> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("image.tar");
        std::fs::write(&path, archive).unwrap();
        let scratch = temp.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let loaded = load(&path, &scratch, &mut |_, _| ()).map_err(|error| error.to_string())?;
        Ok((temp, loaded))
    }

    fn text(tree: &Tree, path: &str) -> Option<String> {
        let Node::File(content) = tree.get(path.as_bytes())?.node else { return None };
        let mut text = String::new();
        tree.content(content).unwrap().reader().unwrap().read_to_string(&mut text).unwrap();
        Some(text)
    }

    const CONFIGURATION: &str = r#"{"architecture":"amd64","config":{"Entrypoint":["/bin/it's"],"Cmd":["a b"],
        "Env":["PATH=/x","K='v'","9=no"],"WorkingDir":"/srv","User":"www"}}"#;

    #[test]
    fn layers_lie_on_top_of_each_other_and_take_away_what_they_say() {
        let lower = tar_of(&[
            ("usr/lib/", ""),
            ("usr/lib/a", "a"),
            ("lib", "-> usr/lib"),
            ("out", "-> ../../etc"),
            ("etc/x", "x"),
            ("var/old/1", "1"),
            ("var/old/deep/2", "2"),
            ("srv/keep", "old"),
            ("srv/gone", "gone"),
            ("srv/gone2", "gone"),
        ]);
        let upper = tar_of(&[
            ("lib/b", "b"),
            ("out/passwd", "in the tree"),
            ("var/old/new", "new"),
            ("var/old/.wh..wh..opq", ""),
            ("srv/keep", "new"),
            ("srv/.wh.gone", ""),
            ("srv/.wh.gone2", ""),
            ("srv/gone2", "back"),
        ]);
        let (_temp, Loaded { tree, notes, program }) =
            loaded(&archive(&[lower, upper], CONFIGURATION, false)).unwrap();
        assert_eq!(text(&tree, "usr/lib/b").unwrap(), "b", "below a link");
        assert_eq!(text(&tree, "etc/passwd").unwrap(), "in the tree", "links do not lead out");
        assert_eq!(text(&tree, "var/old/new").unwrap(), "new");
        assert_eq!((text(&tree, "var/old/1"), text(&tree, "var/old/deep/2")), (None, None));
        assert_eq!(text(&tree, "srv/keep").unwrap(), "new");
        assert_eq!((text(&tree, "srv/gone"), text(&tree, "srv/gone2").unwrap()), (None, "back".to_owned()));
        assert!(tree.entries().all(|(path, _)| !path.windows(4).any(|part| part == WHITEOUT)));
        assert_eq!(notes.len(), 1);
        let program = program.unwrap();
        assert!(
            program.ends_with(
                "export PATH='/x'\nexport K=''\\''v'\\'''\ncd '/srv'\nexec '/bin/it'\\''s' 'a b'\n"
            )
        );
    }

    #[test]
    fn what_is_not_one_whole_image_for_this_machine_is_refused() {
        let layer = || tar_of(&[("a", "a")]);
        let refused = |bytes: &[u8]| loaded(bytes).map(|_| ()).unwrap_err();
        assert!(refused(&archive(&[layer()], CONFIGURATION, true)).contains("is not what its digest says"));
        let arm = CONFIGURATION.replace("amd64", "arm64");
        assert!(refused(&archive(&[layer()], &arm, false)).contains("it is an image for arm64"));
        assert!(refused(&layer()).contains("it has no `manifest.json`; give an OCI archive"));
        let many: Vec<Vec<u8>> = (0..LAYERS_MAX + 1).map(|_| layer()).collect();
        assert!(refused(&archive(&many, CONFIGURATION, false)).contains("at most 128"));
        let mut traversal = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
        header.set_size(0);
        header.set_mode(0o644);
        header.set_cksum();
        traversal.append(&header, io::empty()).unwrap();
        let traversal = traversal.into_inner().unwrap();
        assert!(refused(&archive(&[traversal], CONFIGURATION, false)).contains("could lead out of the root"));
    }
}
