//! Roots, kernels and stores to try things with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reveille_vm::image::{BuildError, BuildRequest, Image, ImageStore, KernelSource, RootSource};
use tempfile::TempDir;

/// A directory with a store, a root and a kernel file in it.
pub struct Bench {
    pub directory: TempDir,
    pub store: ImageStore,
}

impl Bench {
    /// The root has an init that can be run.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        let bench = Self { directory, store };
        fs::create_dir(bench.root()).unwrap();
        bench.write("sbin/init", 0o755, b"#!/.reveille/busybox sh\n");
        fs::write(bench.kernel(), kernel("6.1.0-test")).unwrap();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub fn kernel(&self) -> PathBuf {
        self.path("vmlinuz")
    }

    pub fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Writes a file into the root.
    pub fn write(&self, path: &str, mode: u32, content: &[u8]) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A build of the root with the kernel file.
    pub fn request(&self) -> BuildRequest {
        let kernel = KernelSource::File { kernel: self.kernel(), modules: None };
        BuildRequest::new(RootSource::Directory(self.root()), kernel)
    }

    pub fn build(&self) -> Image {
        self.store.build(&self.request(), &mut |_| ()).unwrap()
    }

    pub fn build_named(&self, name: &str) -> Image {
        let request = BuildRequest { name: Some(name.to_owned()), ..self.request() };
        self.store.build(&request, &mut |_| ()).unwrap()
    }

    /// The sentence with which a build is refused. Nothing may be left of it.
    pub fn refusal(&self, request: &BuildRequest) -> String {
        let before = self.store.list().unwrap().images;
        let refused: BuildError = self.store.build(request, &mut |_| ()).unwrap_err();
        assert_eq!(self.store.list().unwrap().images, before);
        assert_eq!(left_overs(&self.images()), Vec::<String>::new());
        refused.to_string()
    }
}

/// The least that passes for a bzImage of a version: the boot header and the version's text.
pub fn kernel(version: &str) -> Vec<u8> {
    let mut image = vec![0; 0x600];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x0200_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    let text = format!("{version} (test)\0");
    image[0x400..0x400 + text.len()].copy_from_slice(text.as_bytes());
    image
}

/// What builds and removals leave in a store when they are cut off.
pub fn left_overs(images: &Path) -> Vec<String> {
    let names = fs::read_dir(images).unwrap().chain(fs::read_dir(images.join("names")).unwrap());
    names
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect()
}

/// Where packages are kept between runs.
pub fn package_cache() -> PathBuf {
    let cache = std::env::var_os("REVEILLE_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-cache"), PathBuf::from);
    fs::create_dir_all(&cache).unwrap();
    fs::canonicalize(cache).unwrap()
}

/// A build of a root with Debian's own kernel.
pub fn with_debian_kernel(root: &Path) -> BuildRequest {
    let request = BuildRequest::new(RootSource::Directory(root.to_owned()), KernelSource::Debian);
    BuildRequest { package_cache: Some(package_cache()), ..request }
}

/// The files of an archive, by path, as another reader unpacks them.
pub fn unpack(initrd: &Path, into: &Path) {
    fs::create_dir(into).unwrap();
    let status = Command::new("/bin/busybox")
        .args(["cpio", "-i", "-d"])
        .stdin(fs::File::open(initrd).unwrap())
        .stderr(Stdio::null())
        .current_dir(into)
        .status()
        .unwrap();
    assert!(status.success() || into.join("init").exists());
}

/// The paths of an archive, as another reader lists them.
pub fn paths(initrd: &Path) -> Vec<String> {
    let output = Command::new("/bin/busybox")
        .args(["cpio", "-t"])
        .stdin(fs::File::open(initrd).unwrap())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
