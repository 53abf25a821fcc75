"""The platform's own facts, as documents with etag, expiry and change feed."""
