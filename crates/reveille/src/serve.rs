//! `reveille serve`: puts the parts together, runs them, and takes them apart again.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use reveille_api::token_file::{Places, TokenFile};
use reveille_api::{Access, Scope, Token, TokenGrant};
use reveille_core::answer::{View, Zone};
use reveille_core::model::{DomainName, Service, ServiceSpec, SpecFault, Timestamp};
use reveille_dns::limit::Gate;
use reveille_dns::publish::PublishTask;
use reveille_dns::sign::Signing;
use reveille_dns::tsig::Keyring;
use reveille_dns::update::{UPDATES_WAITING_MAX, UpdateAsk, UpdateDesk};
use reveille_dns::{DnsConfig, DnsServer, WakeAsk};
use reveille_net::tap::{TapLimits, Taps};
use reveille_net::{Activator, Binding, Relay, RelayEvents, RelayLimits, raise_open_files};
use reveille_records::Records;
use reveille_store::{Store, StoredStaticSet, WriteError};
use reveille_vm::driver::Driver;
use reveille_vm::image::ImageStore;
use reveille_vm::qemu::{AccelChoice, ProbeGuest, Qemu, QemuConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};

use crate::announce::{about, ready_lines};
use crate::clock::Clock;
use crate::config::{self, Accelerator, Anonymous, Config, NetMode};
use crate::control::executor::Executor;
use crate::control::forecasts::Forecasts;
use crate::control::wiring::{HostWiring, Wiring, egress_policy};
use crate::control::{
    Control, INBOX_MAX, Inputs, Parts, Publisher, Remote, TakenUp, outbound, startup, take_up_updates,
};
use crate::control::{keeping, versions};
use crate::encrypted;
use crate::forecasts::{self, Forecasting, Questions, Threshold};
use crate::keys::Looks;
use crate::records;
use crate::reload::{Announced, Live, Reloader};
use crate::room::QueryRoom;
use crate::stopping::{StopSignals, end_at_next_signal, shut_down};
use crate::zones::{Files, first_view, read_files};

/// How often it is looked whether the secret of DNS cookies is too old.
const GATE_LOOK_EVERY: Duration = Duration::from_secs(300);
/// Questions for sleeping services that may wait for the control loop; more are dropped and counted, and the
/// asker's first packet wakes the service instead.
const ASKS_MAX: usize = 4_096;
/// Runs the daemon with the config file at `path` until it is told to stop.
///
/// # Errors
/// What cannot be set up, and what to do about it.
pub fn serve(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let files = match read_files(&config) {
        Ok(files) => files,
        Err(faults) => bail!("the files that the config names have faults:\n  {}", faults.join("\n  ")),
    };
    log_to_stderr();
    // What the daemon may do beyond an ordinary user is nothing for the programs that it starts.
    if let Err(error) = rustix::thread::clear_ambient_capability_set() {
        tracing::debug!(%error, "there are no ambient rights to drop");
    }
    for SpecFault { key, value, allowed } in config::warnings(&config) {
        tracing::warn!(key, value, better = allowed, "the config file says what hardly is meant");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(path, config, files));
    shut_down(runtime);
    ended
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("REVEILLE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours =
        std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}

async fn run(path: &Path, config: Config, files: Files) -> anyhow::Result<()> {
    // From here on it does not end the process.
    let hangup = signal(SignalKind::hangup())?;
    let daemon = start(path, &config, files).await.map_err(not_started)?;
    let mut stop_signals = StopSignals::listen()?;
    let reloading = tokio::spawn(daemon.reloader.clone().at_each(hangup));
    let mut out = std::io::stdout();
    // Nobody may be reading any more; that is no reason not to serve.
    let _ = out.write_all(ready_lines(&config, &daemon.services).as_bytes());
    let _ = out.flush();
    stop_signals.next().await;
    end_at_next_signal()?;
    reloading.abort();
    tracing::info!("stopping; once more ends at once and leaves what runs to the next start");
    tokio::select! {
        () = daemon.stop() => Ok(()),
        () = stop_signals.next() => Ok(()),
    }
}

/// Says what a failed write means at a start: what runs goes on without, but nothing is begun without.
fn not_started(error: anyhow::Error) -> anyhow::Error {
    if error.chain().any(|cause| cause.is::<WriteError>()) {
        error
            .context("the daemon does not start while it cannot save its state; mend that and start it again")
    } else {
        error
    }
}

/// What runs, and how it is stopped.
struct Daemon {
    services: Vec<(ServiceSpec, Ipv4Addr)>,
    dns: DnsServer,
    inbox: mpsc::Sender<crate::control::Message>,
    control: tokio::task::JoinHandle<()>,
    /// Ends after the control loop.
    forecasting: Option<std::thread::JoinHandle<()>>,
    api: ApiTask,
    keys: tokio::task::JoinHandle<()>,
    reloader: Reloader,
    /// In tap mode.
    taps: Option<Taps>,
    records: Option<Arc<Records>>,
    /// External primaries, left alone when the daemon stops; who looks at the files of the certificate; the operator's
    /// token, removed with the daemon.
    _kept: (Vec<PublishTask>, Option<encrypted::Watched>, TokenFile),
}

impl Daemon {
    async fn stop(self) {
        // First no new clients by name or by API, then the instances; the relay holds who comes in between.
        self.dns.shutdown().await;
        self.api.stop.send_replace(true);
        // A step that is being written is durable or as if it had not been begun.
        self.keys.abort();
        let (message, done) = crate::control::stop();
        if self.inbox.send(message).await.is_ok() {
            let _ = done.await;
        }
        let _ = self.control.await;
        if let Some(thread) = self.forecasting {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        if let Some(taps) = self.taps {
            taps.close().await;
        }
        let _ = self.api.task.await;
        if let Some(records) = self.records {
            records.stop().await;
        }
    }
}

/// What is there before anybody is answered: rows, images, and what the driver found.
struct Host {
    store: Arc<Store>,
    images: Arc<ImageStore>,
    driver: Arc<dyn Driver>,
    found: startup::Found,
    book: startup::Services,
    services: Vec<(ServiceSpec, Ipv4Addr)>,
    kept: Kept,
}

/// What earlier runs noted about zones.
struct Kept {
    /// The highest serial that each zone may have been published with.
    ceilings: BTreeMap<DomainName, u32>,
    /// What dynamic updates have changed.
    static_sets: Vec<StoredStaticSet>,
    /// What was published to external primaries.
    outbound: outbound::Notes,
}

async fn take_stock(config: &Config, wiring: &dyn Wiring, clock: Clock) -> anyhow::Result<Host> {
    let state_dir = &config.daemon.state_dir;
    make_private(state_dir)
        .with_context(|| format!("cannot use the state directory {}", state_dir.display()))?;
    let (store, mut loaded) = Store::open(&state_dir.join("state"))?;
    let kept = Kept {
        ceilings: std::mem::take(&mut loaded.serial_ceilings),
        static_sets: std::mem::take(&mut loaded.static_sets),
        outbound: outbound::Notes {
            published: std::mem::take(&mut loaded.published),
            serials: std::mem::take(&mut loaded.published_serials),
        },
    };
    let store = Arc::new(store);
    let images = Arc::new(ImageStore::open(state_dir.join("images"))?);
    let driver: Arc<dyn Driver> = Arc::new(Qemu::open(qemu_config(config, &images)).await?);
    let capabilities = driver.capabilities();
    tracing::info!(qemu = capabilities.version, accelerator = capabilities.accelerator, "driver");
    let pools = config.pools().context("relay.pool is no network")?;
    let rows = startup::merge(&config.service, loaded, &*store, pools, clock.now()).await?;
    let named = |(service, _): &(Service, _)| (service.spec.clone(), service.address);
    let services: Vec<(ServiceSpec, Ipv4Addr)> = rows.entries.iter().map(named).collect();
    for (service, _) in &services {
        if let Err(error) = images.resolve(&service.image) {
            tracing::warn!(service = %service.name, %error, "cannot be woken");
        }
    }
    let found =
        startup::find(rows.entries, &rows.dropped, config.host, &*driver, &images, wiring, clock.now()).await;
    Ok(Host { store, images, driver, found, book: rows.services, services, kept })
}

async fn start(path: &Path, config: &Config, files: Files) -> anyhow::Result<Daemon> {
    let clock = Clock::start();
    let (activator, relay_events) = activator(config, clock)?;
    let taps = activator.taps();
    let wiring: Arc<dyn Wiring> = Arc::new(HostWiring::new(activator, config.nameserver()));
    let Host { store, images, driver, mut found, book, services, kept } =
        take_stock(config, &*wiring, clock).await?;
    let taken_up = versions::take_up(&config.depot, &mut found.fleet, clock.now()).await?;
    bind_services(config, &*wiring, taps.as_ref(), &services).await?;
    let Kept { ceilings, static_sets, outbound: notes } = kept;
    let (updates, signing, zones) = zones(config, files.zones, static_sets, &services, clock.now())?;
    let (view, serials) = first_view(config, zones, Arc::clone(&store), &ceilings).await?;
    let (generation, generations) = watch::channel(0);
    let mut publisher = Publisher::new(Arc::clone(&view), generation, Arc::clone(&wiring), serials);
    publisher.begin(&found.fleet, clock.now());

    let seen = (view, generations.clone());
    let Opened { dns, asks, update_asks, published, gate, certificate, looks, room, questions, records } =
        open_room(config, seen, files.keys, &signing, notes, &store, clock)?;
    publisher.publish_to(&published);
    publisher.count_with(questions.counters.clone(), Arc::clone(&questions.observer));
    let listener = reveille_api::bind(config.api.listen).await?;
    let (token, access) = operator_token(config)?;

    let (inbox, inbox_end) = mpsc::channel(INBOX_MAX);
    let threshold = Threshold::new(config.observe.anomaly_threshold_sd);
    let forecasting = forecasting(config, &threshold, questions, &inbox, clock);
    let (news, _) = broadcast::channel(reveille_api::events::EVENTS_KEPT_MAX);
    let (profiles, about) = (Arc::clone(&config.profiles), about(config, &*driver, clock));
    let health = config.health.clone();
    let announced = Announced { about, policy: config.policy, health, profiles: Arc::clone(&profiles) };
    let live = Live::of(&dns, gate, Arc::clone(&signing), certificate.as_ref(), announced, threshold);
    let reloader = Reloader::new(path, config.clone(), inbox.clone(), live);
    let images = Arc::new(images);
    let remote = Remote {
        inbox: inbox.clone(),
        clock,
        store: Arc::clone(&store),
        generation: generations,
        news: news.clone(),
        reloader: reloader.clone(),
        room: Arc::new(room),
        recorded: forecasting.as_ref().map(|forecasting| forecasting.recorded.clone()),
        stock: taken_up.as_ref().map(|(stock, _)| Arc::clone(stock)),
        images: Arc::clone(&images) as _,
    };
    let versions = taken_up.map(|(stock, stored)| keeping::start(stock, stored, &inbox, clock));
    let mut executor =
        Executor::new(driver, images, Arc::clone(&wiring), inbox.clone(), clock, versions, profiles);
    executor.take_up(&found.fleet, found.steps);
    let control = Control::new(Parts {
        fleet: found.fleet,
        clock,
        store,
        wiring,
        executor,
        publisher,
        news,
        services: book,
        zones: config.zone.iter().map(|zone| zone.name.clone()).collect(),
        updates,
        on_stop: (config.daemon.on_stop, Duration::from_millis(config.daemon.stop_ms_max)),
        forecasts: forecasting.as_ref().map(|forecasting| Forecasts::new(forecasting.told.clone())),
    });
    let forecasting = forecasting.map(|forecasting| forecasting.thread);
    let inputs = Inputs { asks, relay: relay_events, updates: update_asks, inbox: inbox_end };
    let control = tokio::spawn(control.run(inputs));
    let api = ApiTask::start(listener, Arc::new(remote), access);
    let keys = crate::keys::keep(signing, looks, clock);
    let _kept = (published, certificate, token);
    Ok(Daemon { services, dns, inbox, control, forecasting, api, keys, reloader, taps, records, _kept })
}

/// Who forecasts. Without a history nothing is foreseen, and the daemon serves all the same.
fn forecasting(
    config: &Config,
    threshold: &Threshold,
    questions: Questions,
    inbox: &mpsc::Sender<crate::control::Message>,
    clock: Clock,
) -> Option<Forecasting> {
    forecasts::start(&config.daemon.state_dir, &config.history, threshold, questions, inbox.clone(), clock)
        .inspect_err(|error| tracing::error!(error = format!("{error:#}"), "nothing is recorded or foreseen"))
        .ok()
}

/// The query room, with everybody who listens for questions.
struct Opened {
    dns: DnsServer,
    asks: mpsc::Receiver<WakeAsk>,
    update_asks: mpsc::Receiver<UpdateAsk>,
    published: Vec<PublishTask>,
    gate: Arc<Gate>,
    certificate: Option<encrypted::Watched>,
    looks: Looks,
    room: QueryRoom,
    questions: Questions,
    records: Option<Arc<Records>>,
}

/// Opens the query room on the view and its generations.
fn open_room(
    config: &Config,
    (view, generations): (Arc<ArcSwap<View>>, watch::Receiver<u64>),
    keys: Keyring,
    signing: &Arc<Signing>,
    notes: outbound::Notes,
    store: &Arc<Store>,
    clock: Clock,
) -> anyhow::Result<Opened> {
    let (ask_sender, asks) = mpsc::channel(ASKS_MAX);
    let (update_sender, update_asks) = mpsc::channel(UPDATES_WAITING_MAX);
    let now: reveille_dns::Clock = Arc::new(move || clock.now());
    let published = outbound::start(config::publications(config), &keys, notes, &view.load(), store, &now);
    let gate = gate(config, &view.load(), clock)?;
    let dns_config = dns_config(config, Arc::clone(&gate), keys, update_sender);
    let mut dns = DnsServer::bind(&dns_config, Arc::clone(&view), generations, ask_sender, now)?;
    let certificate = encrypted::listen(config, &mut dns)?;
    let looks = Looks::default();
    let keys_of = (Arc::clone(signing), looks.clone());
    let counters = dns.counters();
    let records = records::start(config, clock)?;
    let (own, others) = records::hearers(records.as_ref(), config, &view);
    let room =
        QueryRoom::open(&mut dns, Arc::clone(&view), dns_config.gate, keys_of, &published, own, clock)?;
    let room = room.collecting(&config.observe.dnstap_in, others)?;
    let (observer, collector) = (Arc::clone(room.observer()), room.collector().cloned());
    let questions = Questions { view, counters, observer, collector, records: records.clone() };
    Ok(Opened { dns, asks, update_asks, published, gate, certificate, looks, room, questions, records })
}

/// The zones as they are served first, with what updates have changed, and who signs them.
fn zones(
    config: &Config,
    read: Vec<Zone>,
    kept: Vec<StoredStaticSet>,
    services: &[(ServiceSpec, Ipv4Addr)],
    now: Timestamp,
) -> anyhow::Result<(UpdateDesk, Arc<Signing>, Vec<Zone>)> {
    let names = services.iter().map(|(spec, _)| spec.name.clone()).collect();
    let TakenUp { desk, zones, aside } = take_up_updates(read, &config.zone, kept, &names);
    aside.tell();
    let (signing, zones) = crate::keys::open(config, zones, services.iter().map(|(spec, _)| spec), now)?;
    Ok((desk, signing, zones))
}

/// The API's server.
struct ApiTask {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl ApiTask {
    fn start(listener: tokio::net::TcpListener, remote: Arc<Remote>, access: Arc<Access>) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let end = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let task = tokio::spawn(reveille_api::serve(listener, remote, access, end));
        Self { stop, task }
    }
}

/// The activator in the mode of this config.
fn activator(config: &Config, clock: Clock) -> anyhow::Result<(Activator, RelayEvents)> {
    let open_files = raise_open_files().context("cannot raise the limit of open files")?;
    let now: reveille_net::Now = Arc::new(move || clock.now());
    Ok(match config.net.mode {
        NetMode::Relay => {
            let (relay, events) = Relay::new(RelayLimits::within(open_files), now);
            (Activator::Relay(relay), events)
        }
        NetMode::Tap => {
            let (taps, events) = Taps::open(TapLimits::default(), config.bridge(), now)?;
            (Activator::Tap(taps), events)
        }
    })
}

async fn bind_services(
    config: &Config,
    wiring: &dyn Wiring,
    taps: Option<&Taps>,
    services: &[(ServiceSpec, Ipv4Addr)],
) -> anyhow::Result<()> {
    for (spec, address) in services {
        let declared = config.service.iter().any(|service| service.name == spec.name);
        match wiring.bind(binding(spec, *address)).await {
            Ok(()) => {}
            Err(error) if declared => return Err(error.into()),
            // Nobody who could mend it is at the keyboard, and the others are not to suffer from it.
            Err(error) => {
                let remedy = "remove the service, or free the port and start again";
                tracing::error!(service = %spec.name, %error, remedy, "cannot be reached");
            }
        }
    }
    // All in one step, before any of them is started.
    taps.map_or(Ok(()), Taps::guard)?;
    Ok(())
}

/// The gate for the zones of the view.
fn gate(config: &Config, view: &View, clock: Clock) -> anyhow::Result<Arc<Gate>> {
    let apexes = view.zones().iter().map(|zone| zone.apex());
    let gate = Arc::new(Gate::new(&config.gate, apexes, clock.now())?);
    tokio::spawn(tend(Arc::clone(&gate), clock));
    Ok(gate)
}

/// Replaces the secret of cookies when it is time, for as long as the daemon runs.
async fn tend(gate: Arc<Gate>, clock: Clock) {
    let mut look = tokio::time::interval(GATE_LOOK_EVERY);
    loop {
        look.tick().await;
        if let Err(error) = gate.tend(clock.now()) {
            tracing::warn!(%error, "the secret of DNS cookies stays as it is");
        }
    }
}

/// How the QEMU driver is opened by this config.
pub fn qemu_config(config: &Config, images: &Arc<ImageStore>) -> QemuConfig {
    let probe = config.service.iter().find_map(|service| images.resolve(&service.image).ok());
    let probe = probe.or_else(|| images.list().ok()?.images.into_iter().next());
    let data_dir = Some(config.qemu.data_dir.clone()).filter(|dir: &PathBuf| !dir.as_os_str().is_empty());
    QemuConfig {
        binary: config.qemu.binary.clone(),
        data_dir,
        accel: match config.qemu.accelerator {
            Accelerator::Auto => AccelChoice::Auto,
            Accelerator::Kvm => AccelChoice::Kvm,
            Accelerator::Tcg => AccelChoice::Tcg,
        },
        // What the config says was checked when it was read.
        users: config.qemu_users().unwrap_or_default(),
        state_dir: config.daemon.state_dir.clone(),
        probe: probe.map(|image| ProbeGuest { kernel: image.kernel, initrd: image.initrd }),
    }
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The relay's binding for a service at its stable address.
pub fn binding(spec: &ServiceSpec, address: Ipv4Addr) -> Binding {
    let mut stable: Vec<IpAddr> = vec![address.into()];
    stable.extend(spec.address6.map(IpAddr::from));
    Binding {
        egress: egress_policy(spec, None),
        held_clients_max: spec.policy.held_clients_max,
        held_ms_max: spec.policy.held_ms_max,
        ..Binding::new(spec.name.clone(), stable, spec.ports.clone())
    }
}

fn dns_config(
    config: &Config,
    gate: Arc<Gate>,
    keys: Keyring,
    updates: mpsc::Sender<UpdateAsk>,
) -> DnsConfig {
    DnsConfig {
        listen: config.dns.listen.clone(),
        gate: Some(gate),
        keys,
        notify: config::notify(config),
        // Zones that take updates may come with a reload.
        updates: Some(updates),
        dnstap: config.observe.dnstap_out.clone(),
        ..dns_threads(config.dns.udp_threads)
    }
}

fn dns_threads(threads: usize) -> DnsConfig {
    let default = DnsConfig::default();
    if threads == 0 { default } else { DnsConfig { udp_threads: threads, ..default } }
}

fn operator_token(config: &Config) -> anyhow::Result<(TokenFile, Arc<Access>)> {
    let token = Token::generate().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let anonymous = match config.api.anonymous {
        Anonymous::Read => reveille_api::Anonymous::Read,
        Anonymous::None => reveille_api::Anonymous::None,
    };
    let access = Arc::new(Access::new(anonymous, Vec::new()));
    let grant = TokenGrant { name: "operator on this host".to_owned(), scope: Scope::Admin, expires: None };
    access.grant(token.hash(), grant).map_err(|_| anyhow::anyhow!("no room for the operator's token"))?;
    let file = TokenFile::write(&Places::of_process(), config.api.listen, token)?;
    Ok((file, access))
}
