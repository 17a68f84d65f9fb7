"""The project: its work list; scans done, skipped or forgotten; readers compared; models learned and chosen."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from voxsam.project import agreement
from voxsam.project.records import check_name
from voxsam.project.summary import ScanRow, summarise
from voxsam.server.api import TheService, failures
from voxsam.server.edits import Strict
from voxsam.server.errors import NotThere, no_project
from voxsam.server.learning import Progress
from voxsam.server.project import Desk
from voxsam.server.store import NAME

LONGEST = 300  # of a case's name
MAX_EVERY = 1000

router = APIRouter(
    prefix="/api/project",
    tags=["project"],
    responses=failures(
        _400="what was sent cannot be done, with the reason",
        _404="no project, or no such scan",
        _422="a body of another form",
        _507="the disk of the project is full",
    ),
)


def _desk(service: TheService) -> Desk:
    if service.desk is None:
        raise no_project()
    return service.desk


TheDesk = Annotated[Desk, Depends(_desk)]
Case = Annotated[str, InPath(max_length=LONGEST, description="The name of a scan.")]
Reader = Annotated[str, Query(max_length=100, description="Whose work it is.", examples=["anna"])]


class Model(BaseModel):
    """A learned model."""

    name: str
    made: str
    state: Literal["offered", "refused", "retired"]
    reason: str = Field(description="Why it was retired.")
    gate: str = Field(examples=["5.1 -> 3.4 clicks to the same mask on 6 scans, fewer on 5 (p = 0.031)"])
    cases: list[str] = Field(description="That it was trained on.")


class Learning(Progress):
    """The progress of learning, and when there will be another."""

    impossible: str = Field(description="Why none can begin now; empty: one can.")
    every: int = Field(description="After how many more scans that are done it begins by itself; 0: never.")
    new: int = Field(description="Scans that were done since it learned last.")


class ProjectState(BaseModel):
    """A project as it is now."""

    name: str
    rows: list[ScanRow]
    order: str = Field(examples=["as listed", "the scan that MODEL is least sure of first"])
    counts: dict[str, int]
    start: str = Field(description="The model that every learning begins with.")
    in_use: str = Field(description="The model that clicks go to.")
    offered: str | None = Field(description="The newest model, where it needs fewer clicks and nobody has decided.")
    can_go_back: bool
    models: list[Model]
    curve: list[tuple[str, int]] = Field(description="Clicks of each clicked scan, in the order of their end.")
    minutes_saved: float | None
    learning: Learning


class Next(Strict):
    """Who asks for a scan."""

    reader: str = Field(max_length=100)
    after: str | None = Field(default=None, max_length=LONGEST, description="The scan that was left.")


class Given(BaseModel):
    """A scan to be opened as {"case": ..., "reader": ...}; null: there is none."""

    case: str | None


class Finished(Strict):
    """A session whose mask and clicks are to be kept."""

    session: str = Field(pattern=f"^{NAME.pattern}$")
    seconds: float | None = Field(default=None, ge=0, description="That the work took.")


class Kept(BaseModel):
    """What was saved."""

    case: str
    clicks: int
    volume_ml: float


class Person(Strict):
    """Who asks."""

    reader: str = Field(max_length=100)


class Wishes(Strict):
    """How the project learns."""

    learn_every: int = Field(ge=0, le=MAX_EVERY, description="0: only when it is told to.")


class Choice(Strict):
    """A model's name."""

    model: str = Field(max_length=200)


class Forgotten(BaseModel):
    """The models that were trained on the case, and are deleted."""

    retired: list[str]


@router.get("", summary="The work list, the models, and what a learning is at")
async def state(desk: TheDesk) -> ProjectState:
    return await asyncio.to_thread(_state, desk)


@router.patch("", summary="After how many scans it learns by itself")
async def change(desk: TheDesk, body: Wishes) -> ProjectState:
    await asyncio.to_thread(desk.project.set_learn_every, body.learn_every)
    return await asyncio.to_thread(_state, desk)


@router.post("/next", summary="The next scan for a reader: it is his from now on")
async def next_case(desk: TheDesk, body: Next) -> Given:
    reader = check_name("reader", body.reader)
    return Given(case=await asyncio.to_thread(desk.project.next, reader, body.after))


@router.get("/previous", summary="The scan that a reader has done or skipped before")
async def previous_case(
    desk: TheDesk,
    reader: Reader,
    before: Annotated[str | None, Query(max_length=LONGEST, description="The scan that is open.")] = None,
) -> Given:
    return Given(case=await asyncio.to_thread(desk.project.previous, reader, before))


@router.post("/done", summary="Keep a session's mask and clicks; the session is closed")
async def done(desk: TheDesk, body: Finished) -> Kept:
    reading = await desk.done(body.session, body.seconds)
    return Kept(case=reading.case, clicks=len(reading.clicks), volume_ml=reading.volume_ml)


@router.post("/cases/{case}/skip", status_code=204, summary="Leave a scan out")
async def skip(desk: TheDesk, case: Case, body: Person) -> Response:
    await desk.skip(case, body.reader)
    return Response(status_code=204)


@router.post("/cases/{case}/release", status_code=204, summary="Put a scan that is in work or skipped back to do")
async def release(desk: TheDesk, case: Case) -> Response:
    await asyncio.to_thread(desk.project.release, case)
    return Response(status_code=204)


@router.get(
    "/cases/{case}/thumbnail", summary="A PNG of a scan, outlined where it is done", response_class=FileResponse
)
async def thumbnail(desk: TheDesk, case: Case) -> FileResponse:
    name = (await asyncio.to_thread(desk.project.scan, case)).name
    path = desk.project.folder / "thumbnails" / f"{name}.png"
    if not path.is_file():
        raise NotThere("a picture that is not here", "a scan with one", "add the scan again")
    return FileResponse(path, media_type="image/png")


@router.delete("/cases/{case}", summary="Forget a patient: masks, clicks, and every model that was trained on them")
async def forget(desk: TheDesk, case: Case) -> Forgotten:
    return Forgotten(retired=list(await desk.forget(case)))


@router.get("/agreement", summary="Two readers of the same scans: Dice, and where they differ")
async def compare(desk: TheDesk, first: Reader, second: Reader) -> list[agreement.Agreement]:
    return await asyncio.to_thread(agreement.compare, desk.project, first, second)


@router.post("/learning", summary="Learn from what is done, or go on with what was cut off")
async def learn(desk: TheDesk) -> ProjectState:
    await asyncio.to_thread(desk.learner.start)
    return await asyncio.to_thread(_state, desk)


@router.delete("/learning", summary="End a learning; what it has done is deleted")
async def stop_learning(desk: TheDesk) -> ProjectState:
    await asyncio.to_thread(desk.learner.stop)
    return await asyncio.to_thread(_state, desk)


@router.post("/model", summary="Take a model into use, for scans that are opened from now on")
async def use(desk: TheDesk, body: Choice) -> ProjectState:
    await desk.use(body.model)
    return await asyncio.to_thread(_state, desk)


@router.post("/model/back", summary="The model that was in use before")
async def back(desk: TheDesk) -> ProjectState:
    await desk.back()
    return await asyncio.to_thread(_state, desk)


def _state(desk: Desk) -> ProjectState:
    found, settings = summarise(desk.project), desk.project.settings
    progress = desk.learner.progress().model_dump()
    progress["said"] = progress["said"].replace(str(desk.project.folder), desk.project.folder.name)
    return ProjectState(
        name=desk.project.folder.name,
        rows=list(found.rows),
        order=found.order,
        counts={str(state): count for state, count in found.counts.items()},
        start=settings.start,
        in_use=found.in_use,
        offered=None if found.offered is None else found.offered.name,
        can_go_back=bool(settings.used),
        models=[
            Model(name=m.name, made=m.made, state=m.state, reason=m.reason, gate=str(m.gate), cases=list(m.cases))
            for m in desk.project.models()
        ],
        curve=list(found.curve),
        minutes_saved=found.minutes_saved,
        learning=Learning(**progress, impossible=desk.learner.reason, every=settings.learn_every, new=found.new),
    )
