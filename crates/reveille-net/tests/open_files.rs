//! The limit of open files, alone in its process because it is the process's.

#![allow(clippy::unwrap_used)]

use reveille_net::{OPEN_FILES_MAX, raise_open_files};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one_and_never_lowered() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum }).unwrap();
    let allowed = maximum.unwrap_or(u64::MAX).min(OPEN_FILES_MAX);
    for _ in 0..2 {
        assert_eq!(raise_open_files().unwrap(), allowed);
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: Some(allowed), maximum });
    }
    let files: Vec<_> = (0..300).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    assert_eq!(files.len(), 300);
}
