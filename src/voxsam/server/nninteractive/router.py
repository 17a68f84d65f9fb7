"""All routes of the nnInteractive protocol.

Arrays come as bodies (wire.py) with JSON in the header X-Meta; masks go back alike, the changed box alone. A client's
slot of the store is its lease. Failures are {"detail": one line}: 410 for a lease that is over, 503 for a full server.
"""

from __future__ import annotations

from fastapi import APIRouter

from voxsam.server.nninteractive import image_routes, interaction_routes, lease_routes

router = APIRouter()
router.include_router(lease_routes.router)
router.include_router(image_routes.router)
router.include_router(interaction_routes.router)
