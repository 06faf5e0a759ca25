//! Gradient boosting of regression trees by squared error (Friedman, "Greedy function approximation: a gradient boosting
//! machine", Ann. Stat. 29, 2001), on features that are put into bins first (Ke et al., "LightGBM", NIPS 2017): each tree
//! is grown leaf by leaf where it gains most, on the residuals of those before it.

/// Most bins of a feature.
const BINS: usize = 32;
/// Most leaves of a tree.
const LEAVES_MAX: usize = 8;
/// Rows that a leaf has at least.
const LEAF_ROWS_MIN: usize = 20;
/// How much a tree counts.
const RATE: f64 = 0.1;
/// Rows with which a leaf is drawn to zero.
const DRAWN_BY: f64 = 4.0;

/// Rows of features and what is to be told from them.
pub(crate) struct Table {
    features: usize,
    cells: Vec<f32>,
    targets: Vec<f64>,
}

impl Table {
    /// Without rows.
    pub(crate) fn new(features: usize, rows: usize) -> Self {
        Self { features, cells: Vec::with_capacity(features * rows), targets: Vec::with_capacity(rows) }
    }

    /// One more row, of as many cells as there are features.
    pub(crate) fn push(&mut self, row: &[f32], target: f64) {
        debug_assert_eq!(row.len(), self.features);
        self.cells.extend(row);
        self.targets.push(target);
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.targets.len()
    }
}

/// Trees whose answers are added up.
pub(crate) struct Trees {
    base: f64,
    trees: Vec<Vec<Node>>,
}

/// The first of a tree is its root.
#[derive(Clone, Copy)]
enum Node {
    /// Up to the edge to the left, above it to the right.
    Split {
        feature: u16,
        edge: f32,
        left: u16,
        right: u16,
    },
    Leaf(f64),
}

impl Trees {
    /// Learns from the table in so many rounds, a tree each.
    pub(crate) fn grow(table: &Table, rounds: usize) -> Self {
        let binned = Binned::of(table);
        let rows = table.rows().max(1) as f64;
        let base = table.targets.iter().sum::<f64>() / rows;
        let mut residuals: Vec<f64> = table.targets.iter().map(|target| target - base).collect();
        let trees = (0..rounds).map(|_| tree(&binned, &mut residuals)).collect();
        Self { base, trees }
    }

    /// What the trees make of a row.
    pub(crate) fn answer(&self, row: &[f32]) -> f64 {
        self.base + self.trees.iter().map(|tree| leaf(tree, row)).sum::<f64>()
    }

    /// What they hold, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.trees.iter().map(|tree| size_of_val(&**tree) + size_of_val(tree)).sum()
    }
}

fn leaf(tree: &[Node], row: &[f32]) -> f64 {
    let mut at = 0;
    loop {
        match tree.get(at) {
            Some(Node::Split { feature, edge, left, right }) => {
                let cell = row.get(usize::from(*feature)).copied().unwrap_or(0.0);
                at = usize::from(if cell <= *edge { *left } else { *right });
            }
            Some(Node::Leaf(value)) => return *value,
            None => return 0.0,
        }
    }
}

/// The table by columns, each cell as the number of its bin.
struct Binned {
    rows: usize,
    columns: Vec<Vec<u8>>,
    /// The upper edge of each bin of each column but the last.
    edges: Vec<Vec<f32>>,
}

impl Binned {
    fn of(table: &Table) -> Self {
        let (mut columns, mut edges) = (Vec::new(), Vec::new());
        for feature in 0..table.features {
            let cells = table.cells.iter().skip(feature).step_by(table.features.max(1));
            let mut sorted: Vec<f32> = cells.clone().copied().collect();
            sorted.sort_unstable_by(f32::total_cmp);
            let mut edge: Vec<f32> = (1..BINS).map(|bin| sorted[bin * (sorted.len() - 1) / BINS]).collect();
            edge.dedup();
            let bin = |cell: &f32| u8::try_from(edge.partition_point(|edge| edge < cell)).unwrap_or(u8::MAX);
            columns.push(cells.map(bin).collect());
            edges.push(edge);
        }
        Self { rows: table.rows(), columns, edges }
    }
}

/// A leaf that may yet be split.
struct Open {
    node: usize,
    rows: Vec<u32>,
    best: Option<Split>,
}

#[derive(Clone, Copy)]
struct Split {
    gain: f64,
    feature: usize,
    bin: u8,
}

/// One tree on the residuals, which it then leaves smaller.
fn tree(binned: &Binned, residuals: &mut [f64]) -> Vec<Node> {
    let all: Vec<u32> = (0..u32::try_from(binned.rows).unwrap_or(u32::MAX)).collect();
    let mut nodes = vec![Node::Leaf(0.0)];
    let mut open = vec![Open { node: 0, best: best_split(binned, residuals, &all), rows: all }];
    while open.len() < LEAVES_MAX {
        let gain = |leaf: &Open| leaf.best.map_or(0.0, |split| split.gain);
        let most = (0..open.len()).max_by(|one, other| gain(&open[*one]).total_cmp(&gain(&open[*other])));
        let Some((at, split)) = most.and_then(|at| Some((at, open[at].best?))) else { break };
        let parent = open.swap_remove(at);
        let column = &binned.columns[split.feature];
        let (left, right): (Vec<u32>, Vec<u32>) =
            parent.rows.into_iter().partition(|row| column[*row as usize] <= split.bin);
        let first = u16::try_from(nodes.len()).unwrap_or(u16::MAX);
        nodes[parent.node] = Node::Split {
            feature: u16::try_from(split.feature).unwrap_or(u16::MAX),
            edge: binned.edges[split.feature][usize::from(split.bin)],
            left: first,
            right: first + 1,
        };
        for rows in [left, right] {
            open.push(Open { node: nodes.len(), best: best_split(binned, residuals, &rows), rows });
            nodes.push(Node::Leaf(0.0));
        }
    }
    for leaf in open {
        let sum: f64 = leaf.rows.iter().map(|row| residuals[*row as usize]).sum();
        let value = RATE * sum / (leaf.rows.len() as f64 + DRAWN_BY);
        leaf.rows.iter().for_each(|row| residuals[*row as usize] -= value);
        nodes[leaf.node] = Node::Leaf(value);
    }
    nodes
}

/// The split after which squares of residuals sum up to least; `None` if none makes them less.
fn best_split(binned: &Binned, residuals: &[f64], rows: &[u32]) -> Option<Split> {
    if rows.len() < 2 * LEAF_ROWS_MIN {
        return None;
    }
    let total: f64 = rows.iter().map(|row| residuals[*row as usize]).sum();
    let count = rows.len();
    let worth = |sum: f64, count: usize| sum * sum / (count as f64 + DRAWN_BY);
    let whole = worth(total, count);
    let mut best: Option<Split> = None;
    for (feature, column) in binned.columns.iter().enumerate() {
        let mut bins = [(0.0, 0_usize); BINS];
        for row in rows {
            let bin = &mut bins[usize::from(column[*row as usize]) % BINS];
            bin.0 += residuals[*row as usize];
            bin.1 += 1;
        }
        let (mut sum, mut below) = (0.0, 0);
        for (bin, (in_bin, rows_in_bin)) in (0_u8..).zip(bins).take(binned.edges[feature].len()) {
            sum += in_bin;
            below += rows_in_bin;
            if rows_in_bin == 0 || below < LEAF_ROWS_MIN || count - below < LEAF_ROWS_MIN {
                continue;
            }
            let gain = worth(sum, below) + worth(total - sum, count - below) - whole;
            if gain > 1e-12 && best.is_none_or(|best| gain > best.gain) {
                best = Some(Split { gain, feature, bin });
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_and_a_product_are_learned_from_rows_and_a_column_of_noise_is_not_asked() {
        let row = |at: u32| {
            let (x, y, noise) = (at % 17, at % 23, at * 7_919 % 101);
            ([x as f32, y as f32, noise as f32], if x > 8 { 10.0 } else { f64::from(y) * 0.5 })
        };
        let mut table = Table::new(3, 2_000);
        (0..2_000).map(row).for_each(|(cells, target)| table.push(&cells, target));
        let trees = Trees::grow(&table, 150);
        let error = |at: u32| {
            let (cells, target) = row(at);
            (trees.answer(&cells) - target).abs()
        };
        let mean = (2_000..2_400).map(error).sum::<f64>() / 400.0;
        assert!(mean < 0.1, "{mean}");
    }

    #[test]
    fn rows_that_are_all_alike_or_too_few_give_their_mean() {
        for rows in [1, 3, 300] {
            let mut table = Table::new(2, rows);
            (0..rows).for_each(|at| table.push(&[1.0, 2.0], (at % 3) as f64));
            let mean = (0..rows).map(|at| (at % 3) as f64).sum::<f64>() / rows as f64;
            let answer = Trees::grow(&table, 10).answer(&[5.0, -5.0]);
            assert!((answer - mean).abs() < 1e-9, "{rows}: {answer}");
        }
    }
}
