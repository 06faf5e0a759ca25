//! Profiles, and the requests that were taken in since they were stored, as bytes.

use super::behaviour::{Hours, Profile, RUNTIMES_MAX};
use super::distribution::{Distribution, Level};
use super::sketch::{BINS_MAX, Cut, Sketch};
use super::tops::Tops;
use super::{Kept, Known, Profiles, Request};
use crate::forecast::stored::{Damaged, Number, Reader, opened, sealed};
use crate::model::Timestamp;

/// The forms of these bytes. Others are of another version of this program, and are not read.
const FORM: u8 = 16;
/// Of requests.
const REQUESTS_FORM: u8 = 17;
/// A byte of a whole number has so many bits of it, the lowest first, and one that says whether there are more.
const VARINT_BITS: u32 = 7;
/// No bin of a value is further from 1 than this: see [`bin_of`](super::sketch::bin_of).
const BIN_MAX: i16 = 1_000;

impl Profiles {
    /// As bytes: some 3 kB a profile.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        sealed(FORM, |out| {
            self.began.map(Timestamp::as_ms).put(out);
            put_kept(&self.users, out);
            put_kept(&self.groups, out);
        })
    }

    /// From the bytes of [`Profiles::to_bytes`], with as many places as there are by default.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        opened(FORM, bytes, |from| {
            let began = Option::<u64>::get(from)?.map(Timestamp::from_ms);
            let mut profiles = Self { began, ..Self::default() };
            get_kept(&mut profiles.users, from)?;
            get_kept(&mut profiles.groups, from)?;
            Some(profiles)
        })
    }
}

/// Requests as bytes, as far as profiles need them: service and tags are left out.
#[must_use]
pub fn pack(requests: &[Request]) -> Vec<u8> {
    sealed(REQUESTS_FORM, |out| {
        put_count(requests.len() as u64, out);
        for request in requests {
            request.at.as_ms().put(out);
            put_text(&request.user, out);
            // No name is empty.
            put_text(request.group.as_deref().unwrap_or_default(), out);
            put_text(request.runtime.as_deref().unwrap_or_default(), out);
            request.seconds.put(out);
            request.cpu_seconds.put(out);
            request.memory_bytes.put(out);
            request.io_bytes.put(out);
        }
    })
}

/// Requests from the bytes of [`pack`].
///
/// # Errors
/// What is wrong with them.
pub fn unpack(bytes: &[u8]) -> Result<Vec<Request>, Damaged> {
    opened(REQUESTS_FORM, bytes, |from| {
        let count = get_count(from)?;
        // Not allocated by what they say of themselves.
        let mut requests = Vec::new();
        for _ in 0..count {
            let name = |text: &str| (!text.is_empty()).then(|| Box::from(text));
            requests.push(Request {
                at: Timestamp::from_ms(u64::get(from)?),
                user: get_text(from)?.into(),
                group: name(get_text(from)?),
                service: Box::default(),
                runtime: name(get_text(from)?),
                seconds: f64::get(from)?,
                cpu_seconds: Option::get(from)?,
                memory_bytes: Option::get(from)?,
                io_bytes: Option::get(from)?,
                tags: Box::default(),
            });
        }
        Some(requests)
    })
}

// --- Profiles ------------------------------------------------------------------------------------------------------

fn put_kept(kept: &Kept, out: &mut Vec<u8>) {
    put_profile(&kept.others, out);
    put_count(kept.by_name.entries().len() as u64, out);
    for (name, count, known) in kept.by_name.entries() {
        put_text(name, out);
        put_count(count, out);
        put_count(known.seen, out);
        u16::from(known.profile.is_some()).put(out);
        if let Some(profile) = &known.profile {
            put_profile(profile, out);
        }
    }
}

fn get_kept(kept: &mut Kept, from: &mut Reader<'_>) -> Option<()> {
    kept.others = get_profile(from)?;
    for _ in 0..get_count(from)? {
        let (name, count, seen) = (get_text(from)?, get_count(from)?, get_count(from)?);
        let profile = match u16::get(from)? {
            0 => None,
            1 => Some(Box::new(get_profile(from)?)),
            _ => return None,
        };
        kept.by_name.put_back(name, count, Known { seen, profile }).then_some(())?;
    }
    Some(())
}

fn put_profile(profile: &Profile, out: &mut Vec<u8>) {
    let Profile { requests, hours, late, runtimes, with_runtime, .. } = profile;
    put_count(*requests, out);
    put_count(*late, out);
    put_count(*with_runtime, out);
    hours.map(|hours| [hours.newest, hours.count]).put(out);
    hours.and_then(|hours| hours.before).put(out);
    for distribution in distributions(profile) {
        put_distribution(distribution, out);
    }
    put_count(runtimes.entries().len() as u64, out);
    for (name, count, &times) in runtimes.entries() {
        put_text(name, out);
        put_count(count, out);
        put_count(times, out);
    }
}

fn get_profile(from: &mut Reader<'_>) -> Option<Profile> {
    let (requests, late, with_runtime) = (get_count(from)?, get_count(from)?, get_count(from)?);
    let (newest, before) = (Option::<[u64; 2]>::get(from)?, Option::get(from)?);
    let hours = newest.map(|[newest, count]| Hours { newest, count, before });
    let mut next = || get_distribution(from);
    let [volume, seconds, cpu_seconds] = [next()?, next()?, next()?];
    let [memory_bytes, io_bytes] = [next()?, next()?];
    let mut runtimes = Tops::new(RUNTIMES_MAX);
    for _ in 0..get_count(from)? {
        let (name, count, times) = (get_text(from)?, get_count(from)?, get_count(from)?);
        runtimes.put_back(name, count, times).then_some(())?;
    }
    Some(Profile {
        requests,
        hours,
        late,
        volume,
        seconds,
        cpu_seconds,
        memory_bytes,
        io_bytes,
        runtimes,
        with_runtime,
    })
}

/// In the order in which they are stored.
fn distributions(profile: &Profile) -> [&Distribution; 5] {
    let Profile { volume, seconds, cpu_seconds, memory_bytes, io_bytes, .. } = profile;
    [volume, seconds, cpu_seconds, memory_bytes, io_bytes]
}

fn put_distribution(distribution: &Distribution, out: &mut Vec<u8>) {
    let Distribution { current, before, levels, renewed_at, seen } = distribution;
    put_sketch(current, out);
    put_sketch(before, out);
    put_count(*renewed_at, out);
    put_count(*seen, out);
    for Level { nominal: _, missed, ends, held, judged, lately } in levels {
        [*missed, *held, lately.0].put(out);
        put_count(*judged, out);
        put_count(lately.1, out);
        let cut = |Cut { bin, above }: Cut, out: &mut Vec<u8>| {
            bin.put(out);
            above.put(out);
        };
        u16::from(ends.is_some()).put(out);
        if let Some((low, high)) = *ends {
            cut(low, out);
            cut(high, out);
        }
    }
}

fn get_distribution(from: &mut Reader<'_>) -> Option<Distribution> {
    let mut distribution = Distribution {
        current: get_sketch(from)?,
        before: get_sketch(from)?,
        renewed_at: get_count(from)?,
        seen: get_count(from)?,
        ..Distribution::default()
    };
    let share = |value: f64| (0.0..=1.0).contains(&value).then_some(value);
    for level in &mut distribution.levels {
        let [missed, held, held_lately] = <[f64; 3]>::get(from)?;
        (level.missed, level.held, level.judged) = (share(missed)?, amount(held)?, get_count(from)?);
        level.lately = (amount(held_lately)?, get_count(from)?);
        let cut = |from: &mut Reader<'_>| {
            let (bin, above) = (Option::<i16>::get(from)?, share(f64::get(from)?)?);
            bin.is_none_or(is_bin).then_some(Cut { bin, above })
        };
        level.ends = match u16::get(from)? {
            0 => None,
            1 => Some((cut(from)?, cut(from)?)),
            _ => return None,
        };
    }
    Some(distribution)
}

fn put_sketch(sketch: &Sketch, out: &mut Vec<u8>) {
    put_count(sketch.zeros, out);
    sketch.first.put(out);
    sketch.sum.put(out);
    put_count(sketch.bins.len() as u64, out);
    sketch.bins.iter().for_each(|&times| put_count(times, out));
}

fn get_sketch(from: &mut Reader<'_>) -> Option<Sketch> {
    let (zeros, first, sum) = (get_count(from)?, i16::get(from)?, amount(f64::get(from)?)?);
    is_bin(first).then_some(())?;
    let places = usize::try_from(get_count(from)?).ok().filter(|places| *places <= BINS_MAX)?;
    let mut bins = Vec::with_capacity(places);
    let mut count = zeros;
    for _ in 0..places {
        let times = get_count(from)?;
        count = count.checked_add(times)?;
        bins.push(times);
    }
    Some(Sketch { zeros, first, bins, count, sum })
}

// --- Parts ---------------------------------------------------------------------------------------------------------

fn is_bin(index: i16) -> bool {
    (-BIN_MAX..=BIN_MAX).contains(&index)
}

/// A number that is finite and not negative.
fn amount(value: f64) -> Option<f64> {
    (value.is_finite() && value >= 0.0).then_some(value)
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_count(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn get_text<'b>(from: &mut Reader<'b>) -> Option<&'b str> {
    let length = usize::try_from(get_count(from)?).ok()?;
    std::str::from_utf8(from.slice(length)?).ok()
}

/// A whole number in as few bytes as it takes: most are small.
fn put_count(mut count: u64, out: &mut Vec<u8>) {
    loop {
        let [low, ..] = count.to_le_bytes();
        count >>= VARINT_BITS;
        if count == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn get_count(from: &mut Reader<'_>) -> Option<u64> {
    let mut count = 0_u64;
    for place in 0..10 {
        let &[byte] = from.slice(1)? else { return None };
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (VARINT_BITS * place);
        if shifted >> (VARINT_BITS * place) != bits {
            return None;
        }
        count |= shifted;
        if byte & 0x80 == 0 {
            return Some(count);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn requests(count: u64) -> Vec<Request> {
        let request = |number: u64| Request {
            at: Timestamp::from_ms(1_800_000_000_000 + number * HOUR_MS / 7),
            user: format!("user {}", number % 13 * (number % 5)).into(),
            group: (!number.is_multiple_of(3)).then(|| format!("group {}", number % 3).into()),
            service: Box::default(),
            runtime: (!number.is_multiple_of(4)).then(|| format!("runtime {}", number % 11).into()),
            seconds: (number % 17) as f64 * 0.31,
            cpu_seconds: (!number.is_multiple_of(2)).then_some(number as f64),
            memory_bytes: (!number.is_multiple_of(5)).then_some(number << 20),
            io_bytes: None,
            tags: Box::default(),
        };
        (0..count).map(request).collect()
    }

    fn known() -> Profiles {
        let mut profiles = Profiles::default();
        requests(2_000).iter().for_each(|request| profiles.take(request));
        profiles
    }

    #[test]
    fn stored_profiles_go_on_as_if_they_had_not_been() {
        let (mut own, mut again) = (known(), Profiles::from_bytes(&known().to_bytes()).unwrap());
        for request in requests(3_000).iter().skip(2_000) {
            own.take(request);
            again.take(request);
        }
        let told = |profiles: &Profiles| {
            let all = profiles.users().chain(profiles.groups());
            let all = all.map(|(name, profile)| (name.to_owned(), profile.behaviour())).collect::<Vec<_>>();
            (all, profiles.other_users().behaviour(), profiles.other_groups().behaviour())
        };
        assert_eq!(told(&own), told(&again));
        assert!(told(&own).0.len() > 20 && told(&own).0[0].1.seconds.intervals.len() == 2);
        assert_eq!(own.to_bytes(), again.to_bytes());
        let none = Profiles::default();
        assert_eq!(Profiles::from_bytes(&none.to_bytes()).unwrap().to_bytes(), none.to_bytes());
    }

    #[test]
    fn packed_requests_are_the_same_as_far_as_profiles_need_them() {
        assert_eq!(unpack(&pack(&requests(100))).unwrap(), requests(100));
        assert_eq!(unpack(&pack(&[])).unwrap(), []);
        assert!(pack(&requests(100)).len() < 100 * 100);
    }

    #[test]
    fn damaged_bytes_are_refused_wherever_they_are() {
        let mut few = Profiles::default();
        requests(60).iter().for_each(|request| few.take(request));
        let (profiles, packed) = (few.to_bytes(), pack(&requests(3)));
        for at in 0..profiles.len() {
            let mut flipped = profiles.clone();
            flipped[at] ^= 0x10;
            assert!(Profiles::from_bytes(&flipped).is_err(), "{at}");
            assert!(Profiles::from_bytes(&profiles[..at]).is_err(), "{at}");
        }
        for at in 0..packed.len() {
            assert!(unpack(&packed[..at]).is_err(), "{at}");
        }
        assert_eq!(unpack(&profiles), Err(Damaged::Form(FORM)));
    }

    #[test]
    fn what_says_that_it_is_much_is_not_believed() {
        // Sums that are right, and counts that are not.
        let lie = sealed(REQUESTS_FORM, |out| put_count(u64::MAX, out));
        assert!(unpack(&lie).is_err());
        let lie = sealed(FORM, |out| {
            None::<u64>.put(out);
            [0, 0, 0].into_iter().for_each(|count| put_count(count, out));
            None::<u64>.put(out);
            None::<u64>.put(out);
            put_count(0, out);
            0_i16.put(out);
            0.0_f64.put(out);
            put_count(BINS_MAX as u64 + 1, out);
        });
        assert!(Profiles::from_bytes(&lie).is_err());
    }
}
