//! Certificates and keys of a control plane, by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::run::output;

/// Names by which every client inside a cluster knows the API server.
const NAMES: &str =
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:10.96.0.1,IP:fd96::1";

/// A folder with a CA and what it signed.
#[derive(Debug, Clone)]
pub(crate) struct Pki(PathBuf);

impl Pki {
    /// Makes a CA, an administrator's certificate and the key that signs tokens.
    ///
    /// # Errors
    /// When openssl fails.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let pki = Self(folder.to_owned());
        let usage = "keyUsage=critical,keyCertSign,cRLSign";
        pki.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -keyout ca.key -out ca.crt \
             -subj /CN=lb-test-ca",
            &["-addext", usage],
        )?;
        pki.sign("admin", "/O=system:masters/CN=admin", "clientAuth", None)?;
        pki.openssl("ecparam -genkey -name prime256v1 -noout -out sa.key", &[])?;
        pki.openssl("ec -in sa.key -pubout -out sa.pub", &[])?;
        Ok(pki)
    }

    /// A server's certificate: the names inside a cluster, and these addresses.
    ///
    /// # Errors
    /// When openssl fails.
    pub(super) fn server(&self, name: &str, addresses: &[&str]) -> Result<()> {
        let mut names = NAMES.to_owned();
        addresses.iter().for_each(|address| names += &format!(",IP:{address}"));
        self.sign(name, "/CN=kube-apiserver", "serverAuth", Some(&names))
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn sign(&self, name: &str, subject: &str, usage: &str, names: Option<&str>) -> Result<()> {
        let names = names.map(|n| format!("subjectAltName={n}\n")).unwrap_or_default();
        let text = format!("basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n{names}");
        fs::write(self.0.join(format!("{name}.ext")), text)?;
        self.openssl(
            &format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr"
            ),
            &["-subj", subject],
        )?;
        self.openssl(
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.ext \
                 -out {name}.crt"
            ),
            &[],
        )
    }

    fn openssl(&self, words: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        output(command.current_dir(&self.0).args(words.split_whitespace()).args(more)).map(drop)
    }
}
