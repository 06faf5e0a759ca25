use reveille_replay::{tape::Tape, trace::Trace};
fn main() {
    let text = std::fs::read_to_string(std::env::args().nth(1).unwrap()).unwrap();
    let trace = Trace::parse(&text).unwrap();
    let t = std::time::Instant::now();
    let tape = Tape::record(&trace, |_| {});
    eprintln!("{} gaps, {:?}, shared {}", tape.gaps.len(), t.elapsed(), tape.shared_bytes);
    let mut n = vec![0; trace.names.len()];
    for r in &trace.requests {
        n[r.name] += 1;
    }
    let mut place = vec![0; n.len()];
    let mut k = 0;
    for i in 0..n.len() {
        if n[i] >= 2 {
            place[i] = k;
            k += 1;
        }
    }
    let sets: [(&str, Box<dyn Fn(usize) -> bool>, [f64; 5], [f64; 5]); 3] = [
        ("all", Box::new(|_| true), [491., 690., 968., 1647., 2779.], [2956., 2060., 1439., 853., 532.]),
        (
            "even",
            Box::new(|p| p % 2 == 0),
            [388.6, 543.9, 753.8, 1230.1, 1954.0],
            [2319., 1581., 1056., 567., 316.],
        ),
        (
            "odd",
            Box::new(|p| p % 2 == 1),
            [102.7, 146.2, 213.9, 416.8, 824.9],
            [634., 479., 386., 286., 215.],
        ),
    ];
    for (label, keep, budgets, best) in sets {
        let names = (0..n.len()).filter(|i| n[*i] >= 2 && keep(place[*i])).count();
        let mut pieces: Vec<(f32, f64, bool)> = vec![];
        let mut total = names;
        for g in tape.gaps.iter().filter(|g| keep(place[g.name])) {
            total += 1;
            for (i, l) in g.looks.iter().enumerate() {
                pieces.push((l.per_hour, f64::from(l.lasted_ms) / 3.6e6, i + 1 == g.looks.len()));
            }
        }
        pieces.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut out = vec![];
        for (b, best) in budgets.iter().zip(best) {
            let (mut idle, mut hit) = (0.0, 0);
            for p in &pieces {
                if idle + p.1 > *b {
                    break;
                }
                idle += p.1;
                hit += usize::from(p.2);
            }
            out.push((total - hit) as f64 / best);
        }
        println!("{label} {:.3?} mean {:.3}", out, out.iter().sum::<f64>() / 5.0);
    }
}
