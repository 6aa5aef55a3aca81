//! The text that Prometheus reads, as Go programs write it (version 0.0.4): there a counter's name ends with `_total` in
//! its `HELP` and `TYPE` lines too, which OpenMetrics has otherwise.

/// Makes it of OpenMetrics text.
#[must_use]
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help: Option<&str> = None;
    for line in open_metrics.lines() {
        if line == "# EOF" {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest);
            continue;
        }
        let typed = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '));
        if let Some((name, kind)) = typed {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take().and_then(|rest| rest.split_once(' ')) {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_as_go_names_them() {
        let open = "# HELP a_b Some help.\n# TYPE a_b counter\na_b_total{code=\"200\"} 3\n\
                    # HELP c Other.\n# TYPE c gauge\nc 1\n# EOF\n";
        let expected = "# HELP a_b_total Some help.\n# TYPE a_b_total counter\na_b_total{code=\"200\"} 3\n\
                        # HELP c Other.\n# TYPE c gauge\nc 1\n";
        assert_eq!(classic(open), expected);
    }
}
