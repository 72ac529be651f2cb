"""What operators may do over HTTP, behind the admin key."""
