//! Our annotations, all with one prefix: what Kubernetes has no field for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Fault;
use crate::model::Forwarding;
use crate::model::settings::Algorithm;
use crate::plan::maglev::{DEFAULT_WEIGHT, MAX_WEIGHT};

/// On a Service: how an endpoint is chosen for a new flow, `random` or `maglev`; without it as `--selection` says.
pub const SELECTION: &str = "lb-agent.io/selection";
/// On an EndpointSlice: the weight of each of its endpoints, 0 to 1000; without it 1. Counts where the choice is Maglev's.
pub const WEIGHT: &str = "lb-agent.io/weight";

/// On a Service: how packets go to endpoints of other nodes, `dsr` or `snat`; without it as `--dsr` says.
pub const FORWARDING: &str = "lb-agent.io/forwarding";

/// [`FORWARDING`]; another word is named, and `--dsr` holds.
pub fn forwarding(meta: &ObjectMeta, faults: &mut Vec<Fault>) -> Option<Forwarding> {
    match value(meta, FORWARDING)?.to_lowercase().as_str() {
        "dsr" => Some(Forwarding::Dsr),
        "snat" => Some(Forwarding::Snat),
        other => {
            let cure = "use dsr or snat; the agent's --dsr holds until then";
            faults.push(fault(FORWARDING, format!("unknown value {other:?}"), cure));
            None
        }
    }
}

/// [`SELECTION`]; another word is named, and `--selection` holds.
pub fn selection(meta: &ObjectMeta, faults: &mut Vec<Fault>) -> Option<Algorithm> {
    let text = value(meta, SELECTION)?;
    let found = <Algorithm as clap::ValueEnum>::from_str(text, true).ok();
    if found.is_none() {
        let cure = "use random or maglev; chosen as --selection says until then";
        faults.push(fault(SELECTION, format!("unknown value {text:?}"), cure));
    }
    found
}

/// [`WEIGHT`]; what is no weight is named, and the default holds.
pub fn weight(meta: &ObjectMeta, faults: &mut Vec<Fault>) -> u16 {
    let Some(text) = value(meta, WEIGHT) else { return DEFAULT_WEIGHT };
    text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT).unwrap_or_else(|| {
        let cure =
            format!("use 0 to {MAX_WEIGHT}; its endpoints have the weight {DEFAULT_WEIGHT} until then");
        faults.push(fault(WEIGHT, format!("{text:?} is not a weight"), &cure));
        DEFAULT_WEIGHT
    })
}

fn value<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    Some(meta.annotations.as_ref()?.get(name)?.trim())
}

fn fault(name: &str, problem: String, cure: &str) -> Fault {
    Fault::new(format!("metadata.annotations[{name}]"), problem, cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str, value: &str) -> ObjectMeta {
        ObjectMeta {
            annotations: Some([(name.to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn what_is_no_value_is_named_and_the_default_holds() {
        let mut faults = Vec::new();
        assert_eq!(selection(&meta(SELECTION, " Maglev"), &mut faults), Some(Algorithm::Maglev));
        assert_eq!(selection(&meta(SELECTION, "random"), &mut faults), Some(Algorithm::Random));
        assert_eq!(weight(&meta(WEIGHT, "1000"), &mut faults), 1000);
        assert_eq!(weight(&meta(WEIGHT, "0"), &mut faults), 0);
        assert_eq!(weight(&ObjectMeta::default(), &mut faults), DEFAULT_WEIGHT);
        assert_eq!(selection(&ObjectMeta::default(), &mut faults), None);
        assert_eq!(faults, []);
        assert_eq!(selection(&meta(SELECTION, "rr"), &mut faults), None);
        for bad in ["1001", "-1", "", "heavy", "70000"] {
            assert_eq!(weight(&meta(WEIGHT, bad), &mut faults), DEFAULT_WEIGHT);
        }
        assert_eq!(forwarding(&meta(FORWARDING, "DSR"), &mut faults), Some(Forwarding::Dsr));
        assert_eq!(forwarding(&meta(FORWARDING, " snat"), &mut faults), Some(Forwarding::Snat));
        assert_eq!(forwarding(&ObjectMeta::default(), &mut faults), None);
        assert_eq!(faults.len(), 6);
        assert_eq!(forwarding(&meta(FORWARDING, "tunnel"), &mut faults), None);
        assert_eq!(faults[6].field, "metadata.annotations[lb-agent.io/forwarding]");
        assert_eq!(faults[0].field, "metadata.annotations[lb-agent.io/selection]");
        assert_eq!(faults[1].problem, "\"1001\" is not a weight");
    }
}
