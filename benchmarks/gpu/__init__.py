"""What a GPU gives: session, options, pipeline, server, attention and memory."""
