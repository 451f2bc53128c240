//! The places for blobs against their contract, and what is each one's own.
//!
//! With `TEST_S3_URL` and the `AWS_*` variables in the environment, the suite runs against the server that they name
//! instead of the one in this process: how another S3 server is tried by hand.

mod folder {
    use std::sync::Arc;

    use async_trait::async_trait;
    use engine::contract::blobs::BlobSubject;
    use engine::port::{BlobHash, Blobs};
    use store::FolderBlobs;
    use tempfile::TempDir;

    struct Folder(TempDir);

    async fn subject() -> Option<Folder> {
        Some(Folder(tempfile::tempdir().expect("a temporary folder")))
    }

    #[async_trait]
    impl BlobSubject for Folder {
        fn blobs(&self) -> Arc<dyn Blobs> {
            Arc::new(FolderBlobs::open(self.0.path()).expect("the folder opens"))
        }

        async fn spoil(&self, hash: &BlobHash, bytes: Vec<u8>) {
            let (shelf, name) = hash.as_str().split_at(2);
            std::fs::write(self.0.path().join(shelf).join(name), bytes).expect("the file is there");
        }
    }

    engine::blob_contract_tests!(crate::blobs::folder::subject);

    #[tokio::test]
    async fn what_is_half_written_is_nobody_elses_to_remove() {
        let folder = subject().await.expect("a folder is always there");
        let mut writer = folder.blobs().begin().await.expect("it begins");
        writer.write("content".into()).await.expect("it is taken");
        let elsewhere = folder.blobs();
        let blob = writer.seal().await.expect("it is whole");
        writer.keep().await.expect("another process has opened the folder meanwhile");
        assert_eq!(elsewhere.get(&blob.hash).await.expect("it answers"), Some(b"content".to_vec()));
        let left = std::fs::read_dir(folder.0.path().join("unfinished")).expect("the folder is there").count();
        assert_eq!(left, 0);
    }
}

mod object {
    use std::sync::Arc;

    use async_trait::async_trait;
    use engine::contract::blobs::BlobSubject;
    use engine::port::{BlobHash, Blobs, StoreError};
    use object_store::ObjectStoreExt as _;
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use store::{BlobsError, ObjectBlobs, open_blobs};
    use tempfile::TempDir;

    use crate::s3::{BUCKET, S3Server};

    struct Objects {
        blobs: ObjectBlobs,
        url: String,
        variables: Vec<(String, String)>,
        spool: TempDir,
        _server: Option<S3Server>,
    }

    /// Every case has a prefix of its own, so that one bucket serves them all.
    async fn subject() -> Option<Objects> {
        let spool = tempfile::tempdir().expect("a temporary folder");
        let case = spool.path().file_name().expect("it has a name").to_string_lossy().replace('.', "");
        let (url, variables, server) = match std::env::var("TEST_S3_URL") {
            Ok(url) => (url, std::env::vars().collect(), None),
            Err(_) => {
                let server = S3Server::start().await;
                (format!("s3://{BUCKET}"), server.variables(), Some(server))
            }
        };
        let url = format!("{url}/{case}/blobs");
        let blobs = ObjectBlobs::open(&url, variables.clone(), spool.path()).expect("the settings are right");
        Some(Objects { blobs, url, variables, spool, _server: server })
    }

    #[async_trait]
    impl BlobSubject for Objects {
        fn blobs(&self) -> Arc<dyn Blobs> {
            Arc::new(self.blobs.clone())
        }

        async fn spoil(&self, hash: &BlobHash, bytes: Vec<u8>) {
            let mut builder = AmazonS3Builder::new().with_url(&self.url);
            for (name, value) in self.variables.iter().filter(|(name, _)| name.starts_with("AWS_")) {
                // Other programs have variables of this kind too.
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            let (_, prefix) =
                self.url.split_once("://").and_then(|(_, place)| place.split_once('/')).expect("a prefix");
            let (shelf, name) = hash.as_str().split_at(2);
            let path = Path::parse(format!("{prefix}/{shelf}/{name}")).expect("it is a path");
            builder.build().expect("it is whole").put(&path, bytes.into()).await.expect("it is taken");
        }
    }

    engine::blob_contract_tests!(crate::blobs::object::subject);

    #[tokio::test]
    async fn what_waited_for_its_name_leaves_no_file() {
        let objects = subject().await.expect("it is always there");
        objects.blobs.put(vec![7; 9 * 1024 * 1024]).await.expect("it is kept");
        assert_eq!(std::fs::read_dir(objects.spool.path()).expect("the folder is there").count(), 0);
    }

    #[tokio::test]
    async fn a_store_that_goes_is_unavailable_until_it_comes_back() {
        let spool = tempfile::tempdir().expect("a temporary folder");
        let mut server = S3Server::start().await;
        let blobs = ObjectBlobs::open(&format!("s3://{BUCKET}"), server.variables(), spool.path()).expect("it opens");
        let hash = blobs.put(b"content".to_vec()).await.expect("it is kept");
        server.stop().await;
        for refused in
            [blobs.put(b"more".to_vec()).await.map(drop), blobs.get(&hash).await.map(drop), blobs.ping().await]
        {
            assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        }
        server.resume().await;
        blobs.ping().await.expect("it is back");
        assert_eq!(blobs.get(&hash).await.expect("it answers"), Some(b"content".to_vec()));
    }

    #[tokio::test]
    async fn wrong_credentials_are_said_without_being_shown() {
        let spool = tempfile::tempdir().expect("a temporary folder");
        let server = S3Server::start().await;
        let mut variables = server.variables();
        variables.retain(|(name, _)| name != "AWS_SECRET_ACCESS_KEY");
        variables.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned()));
        let blobs = ObjectBlobs::open(&format!("s3://{BUCKET}"), variables, spool.path()).expect("it opens");
        let refused = blobs.ping().await.expect_err("nobody may come in with this");
        assert!(matches!(refused, StoreError::Unavailable(_)) && !refused.to_string().contains("hunter2"), "{refused}");
    }

    #[test]
    fn an_address_is_a_bucket_or_a_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = |url: &str| open_blobs(url, [], folder.path());
        for url in ["s3://", "s3:///prefix", "gs://bucket", "s3://key@bucket", "https://bucket.example"] {
            assert!(matches!(open(url), Err(BlobsError::Address(_))), "{url}");
        }
        for url in ["s3://bucket", "s3://bucket/", "s3://bucket/some/prefix", folder.path().to_str().expect("UTF-8")] {
            assert!(open(url).is_ok(), "{url}");
        }
    }
}
