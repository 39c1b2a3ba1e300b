//! Porting kit for [`corespun`]: the place for a tokio-style API and trait
//! adapters on SpdkThreads. It holds nothing yet; `MIGRATION.md` says which
//! parts of the core already replace their tokio counterparts.
