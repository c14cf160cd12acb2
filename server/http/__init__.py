"""HTTP below the routes: uvicorn's protocol with limits, middleware, keys, errors as answers."""
