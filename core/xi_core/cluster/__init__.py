"""The cluster: supervisor, worker, keeper and launcher processes, and the pure core that decides for them."""
