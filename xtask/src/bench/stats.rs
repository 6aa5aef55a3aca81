//! Slices in random order, and what is made of their costs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

/// Largest deviation of the two baseline arms from each other: beyond it a run says nothing.
pub(super) const NOISE: f64 = 0.04;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Slices per arm.
    pub(crate) slices: usize,
    /// Length of one.
    pub(crate) slice: Duration,
    /// Runs of a case until the baseline arms agree.
    pub(crate) attempts: usize,
    /// The short run: fewer sizes, too.
    pub(crate) quick: bool,
}

impl Effort {
    /// The whole, or what fits into two minutes with all scenarios.
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            Self { slices: 8, slice: Duration::from_millis(40), attempts: 1, quick }
        } else {
            Self { slices: 16, slice: Duration::from_millis(120), attempts: 3, quick }
        }
    }
}

/// One way of doing the same, beside the baseline's.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: String,
    /// Least cost of a slice, ns per operation.
    pub(crate) min: f64,
    /// Median of the slices.
    pub(crate) median: f64,
    /// min / min of the baseline.
    pub(crate) times: f64,
    /// Median / median of the baseline.
    pub(crate) times_median: f64,
    /// 95 % bootstrap interval of that.
    pub(crate) interval: [f64; 2],
    /// min / min of the ideal, where there is one.
    pub(crate) ideal: Option<f64>,
    /// Slices measured.
    pub(crate) slices: usize,
}

/// Arms that were measured together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Case {
    /// What it is about, such as `1024 flows`.
    pub(crate) name: String,
    /// The second baseline arm by the first, min / min.
    pub(crate) aa: f64,
    /// Whether that is beyond [`NOISE`], so that nothing here counts.
    pub(crate) void: bool,
    /// The arms, baseline first.
    pub(crate) rows: Vec<Row>,
}

impl Case {
    /// The arm of that name.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// `costs` by arm, in order; the first two are the baseline's, and `ideal` names the limit.
    pub(crate) fn new(name: &str, arms: &[String], costs: &[Vec<f64>], ideal: Option<&str>) -> Self {
        let aa = least(&costs[1]) / least(&costs[0]);
        let baseline: Vec<f64> = costs[..2].concat();
        let limit =
            ideal.and_then(|ideal| arms.iter().position(|arm| arm == ideal)).map(|at| least(&costs[at]));
        let rows = arms.iter().zip(costs).map(|(arm, costs)| {
            let (low, high) = interval(costs, &baseline);
            Row {
                name: arm.clone(),
                min: least(costs),
                median: median(costs),
                times: least(costs) / least(&baseline),
                times_median: median(costs) / median(&baseline),
                interval: [low, high],
                ideal: limit.map(|limit| least(costs) / limit),
                slices: costs.len(),
            }
        });
        Self { name: name.into(), aa, void: (aa - 1.0).abs() > NOISE, rows: rows.collect() }
    }
}

/// Runs slices of all arms in random order, again if the baseline arms (the first two) don't agree.
///
/// # Errors
/// Those of `slice`, which measures one slice of the arm with this index.
pub(crate) fn measure(
    name: &str,
    arms: &[String],
    ideal: Option<&str>,
    effort: &Effort,
    mut slice: impl FnMut(usize) -> Result<f64>,
) -> Result<Case> {
    let mut attempt = 1;
    loop {
        let mut costs = vec![Vec::new(); arms.len()];
        for arm in order(arms.len(), effort.slices) {
            costs[arm].push(slice(arm)?);
        }
        let case = Case::new(name, arms, &costs, ideal);
        if !case.void || attempt >= effort.attempts {
            return Ok(case);
        }
        eprintln!("    {name}: A/A x{:.3}: once more", case.aa);
        attempt += 1;
    }
}

/// A figure beside what it should be.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    /// What is judged.
    pub(crate) what: String,
    /// The figure.
    pub(crate) value: f64,
    /// Bound that it should keep.
    pub(crate) bound: f64,
    /// Whether the bound is the least that is good, not the most.
    pub(crate) at_least: bool,
    /// Whether it is kept.
    pub(crate) met: bool,
}

impl Target {
    /// It should be `bound` or less.
    pub(crate) fn at_most(what: impl Into<String>, value: f64, bound: f64) -> Self {
        Self { what: what.into(), value, bound, at_least: false, met: value <= bound }
    }

    /// It should be `bound` or more.
    pub(crate) fn at_least(what: impl Into<String>, value: f64, bound: f64) -> Self {
        Self { what: what.into(), value, bound, at_least: true, met: value >= bound }
    }
}

/// What one scenario came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// `S2`.
    pub(crate) scenario: &'static str,
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// One line.
    pub(crate) title: String,
    /// Of `min` and `median`.
    pub(crate) unit: &'static str,
    /// What was measured together.
    pub(crate) cases: Vec<Case>,
    /// Figures that are promised.
    pub(crate) targets: Vec<Target>,
    /// What a reader must know: gates passed, what was skipped and why.
    pub(crate) notes: Vec<String>,
    /// Single figures, for machines.
    pub(crate) figures: BTreeMap<String, f64>,
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new(scenario: &'static str, name: &'static str, title: &str, unit: &'static str) -> Self {
        Self {
            scenario,
            name,
            title: title.into(),
            unit,
            cases: Vec::new(),
            targets: Vec::new(),
            notes: Vec::new(),
            figures: BTreeMap::new(),
        }
    }
}

/// The least of them.
pub(crate) fn least(costs: &[f64]) -> f64 {
    costs.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Indices of `arms`, each so many times, in random order.
pub(crate) fn order(arms: usize, times: usize) -> Vec<usize> {
    let mut blocks: Vec<usize> = (0..arms).flat_map(|arm| std::iter::repeat_n(arm, times)).collect();
    let mut random = Random::seeded();
    for index in (1..blocks.len()).rev() {
        blocks.swap(index, random.below(index + 1));
    }
    blocks
}

/// The upper median.
pub(crate) fn median(costs: &[f64]) -> f64 {
    let mut sorted = costs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// 95 % bootstrap interval of the ratio of medians.
pub(crate) fn interval(candidate: &[f64], baseline: &[f64]) -> (f64, f64) {
    let mut random = Random::seeded();
    let mut draw =
        |costs: &[f64]| -> Vec<f64> { costs.iter().map(|_| costs[random.below(costs.len())]).collect() };
    let mut ratios: Vec<f64> =
        (0..1000).map(|_| median(&draw(candidate)) / median(&draw(baseline))).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[25], ratios[974])
}

/// xorshift64*: good enough to shuffle slices.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(now.as_nanos() as u64 | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arm_gets_the_same_number_of_blocks() {
        let blocks = order(3, 5);
        assert!((0..3).all(|arm| blocks.iter().filter(|block| **block == arm).count() == 5));
    }

    #[test]
    fn the_interval_of_two_times_the_cost_is_around_two() {
        let baseline: Vec<f64> = (0..50).map(|i| 100.0 + f64::from(i % 7)).collect();
        let candidate: Vec<f64> = baseline.iter().map(|cost| cost * 2.0).collect();
        let (low, high) = interval(&candidate, &baseline);
        assert!(low > 1.8 && high < 2.2 && median(&candidate) > 200.0);
    }

    #[test]
    fn a_case_compares_with_both_baseline_arms_and_is_void_when_they_differ() {
        let arms = ["plain", "again", "ours"].map(String::from);
        let case = Case::new("x", &arms, &[vec![100.0; 8], vec![102.0; 8], vec![51.0; 8]], Some("ours"));
        assert!(!case.void && (case.rows[2].times - 0.51).abs() < 1e-9);
        assert!((case.rows[0].ideal.unwrap() - 100.0 / 51.0).abs() < 1e-9);
        assert!(Case::new("x", &arms, &[vec![100.0; 8], vec![105.0; 8], vec![51.0; 8]], None).void);
    }

    #[test]
    fn a_void_case_is_measured_again_so_often() {
        let arms = ["plain", "again"].map(String::from);
        let effort = Effort { slices: 2, slice: Duration::ZERO, attempts: 3, quick: false };
        let mut calls = 0;
        let case = measure("x", &arms, None, &effort, |arm| {
            calls += 1;
            Ok(if arm == 0 { 1.0 } else { 2.0 })
        });
        assert!(case.unwrap().void && calls == 12);
    }
}
