//! OCI image layout 1.0: <https://github.com/opencontainers/image-spec>, and `manifest.json` beside it for
//! `docker load`.

use anyhow::Result;
use serde_json::{Value, json};

use super::layer::{Entry, Layer, sha256, tar};

/// What the image says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labels<'a> {
    /// Its name, such as `localhost/lb-agent:0.1.0`.
    pub(crate) tag: &'a str,
    /// The commit it was built from.
    pub(crate) commit: &'a str,
    /// The C library in it.
    pub(crate) libc: &'a str,
}

/// The image as one file.
///
/// # Errors
/// A path does not fit into a tar header.
pub(crate) fn archive(layer: &Layer, labels: &Labels<'_>, created: u64) -> Result<Vec<u8>> {
    let config = configuration(layer, labels, &rfc3339(created)?).to_string().into_bytes();
    let layer_digest = sha256(&layer.compressed);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.compressed)],
    })
    .to_string()
    .into_bytes();
    let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    listed["platform"] = json!({"architecture": architecture(), "os": "linux"});
    listed["annotations"] = json!({
        // containerd takes the name from the first, others the part after the colon from the second
        "io.containerd.image.name": labels.tag,
        "org.opencontainers.image.ref.name": labels.tag.rsplit_once(':').map_or("latest", |(_, tag)| tag),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [listed],
    });
    let blob = |digest: &str| format!("blobs/sha256/{digest}");
    let docker = json!([{
        "Config": blob(&sha256(&config)),
        "RepoTags": [labels.tag],
        "Layers": [blob(&layer_digest)],
    }]);
    let file = |path: &str, bytes: Vec<u8>| Entry::text(path, bytes);
    tar(
        &[
            file("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes()),
            file("index.json", index.to_string().into_bytes()),
            file("manifest.json", docker.to_string().into_bytes()),
            file(&blob(&sha256(&manifest)), manifest),
            file(&blob(&sha256(&config)), config),
            file(&blob(&layer_digest), layer.compressed.clone()),
        ],
        created,
    )
}

fn configuration(layer: &Layer, labels: &Labels<'_>, created: &str) -> Value {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": created,
        "config": {
            "Entrypoint": ["/usr/bin/lb-agent"],
            "Cmd": ["run"],
            // systemd's word for it: the agent mounts nothing in a container
            "Env": ["PATH=/usr/bin", "container=oci"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "lb-agent",
                "org.opencontainers.image.description": "eBPF service load balancer for Kubernetes nodes",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.revision": labels.commit,
                // the kernel programs are Apache-2.0 or GPL-2.0-only; the rest is Apache-2.0
                "org.opencontainers.image.licenses": "Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only)",
                "libc": labels.libc,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.diff_id)]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    })
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
}

/// This machine's architecture by Go's name, which images go by.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Seconds since 1970 as a date.
///
/// # Errors
/// Beyond the year 9999.
pub(crate) fn rfc3339(seconds: u64) -> Result<String> {
    Ok(jiff::Timestamp::from_second(i64::try_from(seconds)?)?.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    /// Reads the archive as a runtime does: index, manifest, configuration, layer, each by its digest.
    #[test]
    fn every_digest_leads_to_its_blob_and_the_same_input_gives_the_same_bytes() {
        let layer = Layer::of(&[Entry::program("usr/bin/x", b"x".to_vec())], 1_700_000_000).unwrap();
        let labels = Labels { tag: "localhost/x:1", commit: "c", libc: "musl" };
        let bytes = archive(&layer, &labels, 1_700_000_000).unwrap();
        assert_eq!(bytes, archive(&layer, &labels, 1_700_000_000).unwrap());

        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let found = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(sha256(found), digest);
            assert_eq!(found.len(), descriptor["size"]);
            found.as_slice()
        };
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let listed = &json(&files["index.json"])["manifests"][0];
        assert_eq!(listed["annotations"]["io.containerd.image.name"], "localhost/x:1");
        assert_eq!(listed["annotations"]["org.opencontainers.image.ref.name"], "1");
        let manifest = json(blob(listed));
        let config = json(blob(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", layer.diff_id));
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/lb-agent");
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(blob(&manifest["layers"][0]), layer.compressed);
        let docker = &json(&files["manifest.json"])[0];
        assert!(files.contains_key(docker["Config"].as_str().unwrap()));
        assert!(files.contains_key(docker["Layers"][0].as_str().unwrap()));
    }
}
