//! `reveille image …`: what virtual machines boot. Works on the state directory; no daemon is needed.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use reveille_core::model::DomainName;
use reveille_vm::image::{
    BuildRequest, BuildStep, Image, ImageStore, KernelSource, Progress, RootSource, Use,
};

use super::output::{bytes, table};
use super::pull::pull;
use super::remote::runtime;
use super::{CONFIG_DEFAULT, Daemon, Output};
use crate::config::Config;

/// Verbs of `reveille image`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Build an image from a root directory, a tar archive, a container image or a disk, and a kernel
    Build(Box<Build>),
    /// List all images
    List(Place),
    /// Show one image
    Show(Named),
    /// Recompute an image's checksums
    Verify(Named),
    /// Remove a name, and the image with its last name
    Remove(Named),
}

/// Where the images are.
#[derive(Debug, Args)]
pub struct Place {
    /// The daemon's config file, for its state directory
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// The state directory, instead of the config file's
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// One image.
#[derive(Debug, Args)]
pub struct Named {
    /// Name, content address, or its unique beginning
    image: String,
    #[command(flatten)]
    place: Place,
}

/// Options of `reveille image build`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("from").required(true).args(["root", "tar", "oci", "pull", "disk"]).multiple(true)),
    after_help = "Examples:\n  reveille image build web --root ./rootfs\n  reveille image build web --tar rootfs.tar.zst --kernel ./vmlinuz --modules ./lib/modules/6.1.0\n\nThe root's own init (/sbin/init, /init, /etc/init or /bin/init, or --init) becomes PID 1 after the network\nis up as 10.0.2.15/24. The root is unpacked into the guest's memory.\n\nWith --disk each instance has a disk of its own (/dev/vda) that begins as the given one; what it writes there outlives\nsleep, crashes and cold boots. Without --root and --tar the root is on the disk, too: an ext4 file system, with an init.\n  reveille image build web --pull docker.io/library/nginx:1.27\n  reveille image build web --oci web.oci.tar\n  reveille image build db --tar rootfs.tar --disk empty.ext4\n  reveille image build debian --disk debian.qcow2 --root-device /dev/vda1"
)]
pub struct Build {
    /// Name for the image
    name: String,
    /// A directory with the guest's root file system
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// A tar archive of it: plain, gzip or zstd
    #[arg(long, value_name = "FILE", conflicts_with = "root")]
    tar: Option<PathBuf>,
    /// A container image: an OCI archive, or what `docker save` writes
    #[arg(long, value_name = "FILE", conflicts_with_all = ["root", "tar"])]
    oci: Option<PathBuf>,
    /// A container image in a registry, which `skopeo` gets
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["root", "tar", "oci"])]
    pull: Option<String>,
    /// The disk that instances begin with: qcow2 or raw
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Where on the disk the root is, if neither a directory nor an archive is given
    #[arg(long, value_name = "DEVICE", default_value = "/dev/vda", conflicts_with_all = ["root", "tar", "oci", "pull"])]
    root_device: String,
    /// `debian` (the newest cloud kernel that apt offers), a Debian kernel package, or a kernel file
    #[arg(long, value_name = "KERNEL", default_value = "debian")]
    kernel: String,
    /// Modules of a kernel file
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// The program in the root that becomes PID 1
    #[arg(long, value_name = "PATH")]
    init: Option<String>,
    /// Memory that its services will have, to be told now if it is not enough
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u32>,
    /// A static busybox for the boot stage
    #[arg(long, value_name = "FILE")]
    busybox: Option<PathBuf>,
    /// Where downloaded packages are kept
    #[arg(long, value_name = "DIR")]
    package_cache: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

impl Place {
    /// The image store there, and the services of the config file.
    fn open(&self) -> anyhow::Result<(ImageStore, Config)> {
        let config = match (&self.state_dir, self.config.exists()) {
            (Some(_), false) => Config::default(),
            _ => Config::load(&self.config)?,
        };
        let state_dir = self.state_dir.as_ref().unwrap_or(&config.daemon.state_dir);
        Ok((ImageStore::open(state_dir.join("images"))?, config))
    }
}

impl Verb {
    /// Carries the verb out.
    ///
    /// # Errors
    /// One sentence with the remedy.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Build(build) => build.run(output),
            Self::List(place) => {
                let listing = place.open()?.0.list()?;
                output.print(&listing, |listing| {
                    let mut text = list(&listing.images);
                    for damaged in &listing.damaged {
                        text += &format!("damaged: {}: {}\n", damaged.what, damaged.fault);
                    }
                    text
                })
            }
            Self::Show(named) => output.print(&named.place.open()?.0.resolve(&named.image)?, show),
            Self::Verify(named) => {
                let image = named.place.open()?.0.verify(&named.image)?;
                output.print(&image, |image| format!("{} is intact", image.digest))
            }
            Self::Remove(named) => {
                let (store, config) = named.place.open()?;
                let uses = uses(&named.place, &config, &store.list()?.images)?;
                let removed = store.remove(&named.image, &uses)?;
                output.print(&removed, |removed| {
                    let what = if removed.image { "the image is gone" } else { "the image has other names" };
                    format!("{}: {what}", removed.names.join(", "))
                })
            }
        }
    }
}

/// Who needs which image: the services of the config file, what instances have on this host's disk, and, if its daemon
/// runs, all services, what they can be rolled back to, and their versions.
fn uses(place: &Place, config: &Config, images: &[Image]) -> anyhow::Result<Vec<Use>> {
    let of = |image: &str, user: String| Use { image: image.to_owned(), user };
    let service = |name: &DomainName| format!("service {name}");
    let mut uses: Vec<Use> =
        config.service.iter().map(|declared| of(&declared.image, service(&declared.name))).collect();
    let state_dir = place.state_dir.as_ref().unwrap_or(&config.daemon.state_dir);
    for need in reveille_vm::qemu::needs_on_disk(state_dir)? {
        let user = need.path.display().to_string();
        uses.extend(need.image.map(|image| of(&image, format!("a version in {user}"))));
        let bases = images.iter().filter(|image| {
            image.disk.as_ref().is_some_and(|disk| need.base.as_ref() == Some(&disk.address))
        });
        uses.extend(bases.map(|image| of(&image.digest, format!("the disk in {user}"))));
    }
    let daemon = Daemon { api: format!("http://{}", config.api.listen), token_file: None };
    let asked = async {
        let client = daemon.client().await?;
        for summary in client.services().await? {
            let name = &summary.name;
            uses.push(of(&summary.image, service(name)));
            let former = client.service(name).await?.former_image;
            uses.extend(former.map(|image| of(&image, format!("`reveille service rollback {name}`"))));
            for version in client.versions(name).await?.versions {
                let user = format!("version {} of {name}", version.number);
                uses.extend(version.image.map(|image| of(&image, user)));
            }
        }
        anyhow::Ok(())
    };
    // Without a daemon, what is on the disk has to do.
    if let Err(error) = runtime().map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(asked)) {
        tracing::debug!(%error, "the daemon was not asked which images it needs");
    }
    Ok(uses)
}

impl Build {
    fn run(self, output: Output) -> anyhow::Result<()> {
        // What is pulled is gone again when the image is built.
        let pulled = self.pull.map(|reference| {
            let directory = tempfile::tempdir()?;
            let archive = pull(&reference, directory.path(), output.draws_progress())?;
            anyhow::Ok((directory, archive))
        });
        let pulled = pulled.transpose()?;
        let archive = pulled.as_ref().map(|(_, archive)| archive.clone());
        let root = match (self.root, self.tar, self.oci.or(archive)) {
            (Some(root), ..) => RootSource::Directory(root),
            (None, Some(tar), _) => RootSource::Tar(tar),
            (None, None, Some(image)) => RootSource::Oci(image),
            (None, None, None) if self.disk.is_some() => RootSource::OnDisk { device: self.root_device },
            (None, None, None) => {
                anyhow::bail!("name a root: --root DIR, --tar FILE, --oci FILE, --pull IMAGE or --disk FILE")
            }
        };
        let is_package = self.kernel.to_ascii_lowercase().ends_with(".deb");
        let kernel = match self.kernel.as_str() {
            "debian" => KernelSource::Debian,
            path if is_package => KernelSource::Package(path.into()),
            path => KernelSource::File { kernel: path.into(), modules: self.modules },
        };
        let request = BuildRequest {
            disk: self.disk,
            init: self.init,
            busybox: self.busybox,
            memory_mib: self.memory_mib,
            name: Some(self.name),
            package_cache: self.package_cache,
            ..BuildRequest::new(root, kernel)
        };
        let (store, _) = self.place.open()?;
        let bar = output.draws_progress().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        }
        let image = store.build(&request, &mut |progress| {
            if let Some(bar) = &bar {
                bar.set_message(said(progress));
                bar.tick();
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        output.print(&image?, show)
    }
}

fn said(progress: Progress) -> String {
    let step = match progress.step {
        BuildStep::Root => "reading the root",
        BuildStep::Kernel => "fetching and unpacking the kernel",
        BuildStep::Disk => "copying the disk",
        BuildStep::Write => "writing the image",
    };
    let done = match (progress.bytes, progress.bytes_total) {
        (0, _) => String::new(),
        (done, None) => format!(": {}", bytes(done)),
        (done, Some(total)) => format!(": {} of {}", bytes(done), bytes(total)),
    };
    format!("{step}{done}")
}

fn list(images: &[Image]) -> String {
    if images.is_empty() {
        return "no images yet; `reveille image build --help` says how to make one\n".to_owned();
    }
    let rows: Vec<[String; 5]> = images
        .iter()
        .map(|image| {
            let names = if image.names.is_empty() { "-".to_owned() } else { image.names.join(",") };
            let digest = image.digest.chars().take(12).collect();
            let (kernel, memory) = (image.kernel_version.clone(), format!("{} MiB", image.memory_mib_min));
            [names, digest, bytes(image.bytes), kernel, memory]
        })
        .collect();
    table(["NAME", "DIGEST", "SIZE", "KERNEL", "NEEDS"], &rows)
}

fn show(image: &Image) -> String {
    let mut rows = vec![
        ("names", image.names.join(", ")),
        ("digest", image.digest.clone()),
        ("kernel", image.kernel_version.clone()),
        ("init", image.init.clone()),
        ("entries", image.entries.to_string()),
        ("size", bytes(image.bytes)),
        ("needs", format!("{} MiB of memory at least", image.memory_mib_min)),
        ("built", reveille_api::Time(image.built_at).to_string()),
    ];
    if let Some(disk) = &image.disk {
        rows.push(("disk", format!("{} ({})", bytes(disk.bytes), disk.format.word())));
    }
    rows.extend(image.notes.iter().map(|note| ("note", note.clone())));
    rows.iter().map(|(key, value)| format!("{key:9} {value}\n")).collect()
}
