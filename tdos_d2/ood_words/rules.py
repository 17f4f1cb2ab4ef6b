"""What the miner knows beyond WordNet's relations: data, read by :mod:`tdos_d2.ood_words.mining`.

Names are WordNet 3.0's (``lemma.n.sense``); each stands for its subtree, the synset and all below.
"""

from __future__ import annotations

from dataclasses import dataclass

# Things that a camera sees and that can lie, stand or walk about.
SEEN = (
    "artifact.n.01", "animal.n.01", "food.n.01", "food.n.02", "natural_object.n.01", "plant.n.02",
    "log.n.01",
)  # fmt: skip

# Below these: no things of their own, or nothing that anybody wants to read here.
UNSEEN = (
    # abstract, microscopic, far away, or a matter of size, shape, trade and age only
    "system.n.01", "medium.n.01", "means.n.02", "creation.n.02", "line.n.18", "track.n.03",
    "track.n.07", "extra.n.02", "insert.n.01", "restoration.n.05", "body.n.01", "body.n.03",
    "body.n.04", "universe.n.01", "extraterrestrial_object.n.01", "celestial_body.n.01",
    "black_body.n.01",
    "radiator.n.01", "sample.n.03", "merchandise.n.01", "future.n.03", "entrant.n.01",
    "export.n.01", "import.n.01", "basic.n.02", "worldly_possession.n.01", "thing.n.04",
    "americana.n.01", "breakable.n.01", "decker.n.02", "load.n.01", "salvage.n.01",
    "property.n.01", "interior_decoration.n.01", "set_decoration.n.01", "graffito.n.01",
    "web_site.n.01", "time_machine.n.01", "antiquity.n.03",
    # inside of other things, on their outside, or holding them together
    "mechanism.n.05", "electrical_device.n.01", "memory_device.n.01", "conductor.n.04",
    "electronic_device.n.01", "connection.n.03", "fastener.n.02", "restraint.n.06",
    "measuring_instrument.n.01", "surveying_instrument.n.01", "detector.n.01", "filter.n.01",
    "lens.n.01", "prism.n.02", "bearing.n.06", "rib.n.01", "magnet.n.01", "accelerator.n.04",
    "analyzer.n.01", "converter.n.01", "data_converter.n.01", "elastic_device.n.01",
    "airfoil.n.01", "indicator.n.03", "lever.n.01", "screw_thread.n.01", "control.n.09",
    "nut.n.03", "type.n.06", "pad.n.03", "lining.n.01", "binding.n.05", "facing.n.03",
    "housing.n.02", "pocket.n.01", "sleeve.n.01", "skirt.n.01", "flap.n.01", "band.n.04",
    "design.n.04", "architectural_ornament.n.01", "molding.n.02", "hanging.n.01", "base.n.03",
    "mound.n.01", "film.n.03", "circuitry.n.01", "lighting.n.02", "nuclear_reactor.n.01",
    "membrane.n.01", "nameplate.n.01", "doorplate.n.01",
    # materials, coatings, places
    "drug.n.01", "fabric.n.01", "building_material.n.01", "material.n.04", "coating.n.01",
    "layer.n.01", "surface.n.01", "opening.n.10", "excavation.n.03", "strip.n.02", "facing.n.01",
    "toiletry.n.01", "wallboard.n.01", "paving.n.01", "gas.n.02", "chemical.n.01", "mulch.n.01",
    # liquids, ingredients, occasions
    "beverage.n.01", "fare.n.04", "meal.n.01", "ingredient.n.03", "course.n.07", "concoction.n.01",
    "foodstuff.n.02", "culture_medium.n.01", "micronutrient.n.01", "vitamin.n.01", "feed.n.01",
    "milk.n.01", "miraculous_food.n.01", "commissariat.n.01", "comfort_food.n.01",
    "convenience_food.n.01", "soup.n.01", "stew.n.02",
    # parasites
    "worm.n.01", "acarine.n.01", "louse.n.01", "flea.n.01",
    # people and unborn animals, which WordNet has among animals
    "hominid.n.01", "fetus.n.01",
    # body parts, illness, sex, cruelty
    "body_covering.n.01", "calculus.n.01", "prosthesis.n.01", "medical_instrument.n.01",
    "dental_appliance.n.01", "dressing.n.04", "variety_meat.n.01", "contraceptive.n.01",
    "burial_garment.n.01", "body_bag.n.01", "instrument_of_execution.n.01",
    "instrument_of_torture.n.01", "explosive_device.n.01", "bomb.n.01",
    "weapon_of_mass_destruction.n.01",
)  # fmt: skip

# Things of their own although they are below UNSEEN, or near or part of a known class.
KEEP = (
    "edible_fruit.n.01", "vegetable.n.01", "edible_nut.n.01", "baked_goods.n.01", "cheese.n.01",
    "tent.n.01", "ladder.n.01", "sawhorse.n.01", "book.n.02", "plaything.n.01",
    "carcase.n.01", "timepiece.n.01", "rope.n.01", "brick.n.01", "tarpaulin.n.01", "anchor.n.01",
    "flag.n.01", "hose.n.03", "log.n.01",
)  # fmt: skip

# Senses that a word counts in although its first one is another, apart from all of KEEP.
LATER_SENSES = (
    "table.n.02", "barrel.n.02", "package.n.02", "football.n.02", "baseball.n.02", "tiger.n.02",
    "hammer.n.02", "brush.n.02", "net.n.02", "pitcher.n.02", "television_receiver.n.01",
    "kite.n.03", "baby_buggy.n.01", "pallet.n.03", "carriage.n.02", "spade.n.02",
    "glass.n.02", "arrow.n.02", "chest.n.02", "alligator.n.02", "marble.n.02", "sword.n.01",
    "drum.n.04", "pipe.n.02", "cone.n.01", "bundle.n.02", "chest_of_drawers.n.01",
)  # fmt: skip

# WordNet marks words with these usages.
RUDE_USAGE = ("ethnic_slur.n.01", "disparagement.n.01", "obscenity.n.02")

# Words that are left out alone and in compounds: unpleasant ones that WordNet does not mark, and
# those whose first sense is not what people think of.
UNWANTED = (
    "airline", "ani", "ass", "assembly", "automatic", "baba", "bars", "bender", "billy", "bones",
    "brand", "breast", "buck", "bumper", "cadaver", "canvas", "colors", "colours", "compact",
    "confederate", "cope", "coping", "corpse", "das", "death", "delicious", "emblem", "empty",
    "entire", "feeder", "female", "fitch", "flower", "four-poster", "gat", "giant", "gig", "gypsy",
    "header", "hobby", "home", "horn", "inverter", "io", "jak", "jenny", "jonathan", "kamikaze",
    "kern", "kit", "kris", "kylie", "lorry", "lower", "main", "male", "manta", "mechanism",
    "mount", "mudder", "nipple", "nude", "plague", "playhouse", "portable", "prima", "radiator",
    "rb", "reset", "rig", "rings", "round", "seb", "settle", "setup", "shook", "slate", "slave",
    "slide", "sowbelly", "steel", "stray", "term", "tidy", "tier", "tit", "toby", "top",
    "trapping", "upper", "uppers", "young",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """What a known class means in WordNet.

    Attributes:
        senses: synsets that the class name stands for; distances are to these.
        near: what an annotator would give this class, or what belongs to such things.
    """

    senses: tuple[str, ...]
    near: tuple[str, ...] = ()


_GROUND = (
    "way.n.06", "geological_formation.n.01", "land.n.04", "floor.n.01", "marker.n.01",
    "bedrock.n.01", "outcrop.n.01", "tor.n.01", "stepping_stone.n.01",
)  # fmt: skip
_BUILT = (
    "structure.n.01", "facility.n.01", "fixture.n.01", "enclosure.n.01", "area.n.05",
    "window.n.01", "window_screen.n.01", "window_blind.n.01", "window_seat.n.01", "awning.n.01",
    "chimney.n.01", "elevator.n.01", "floorboard.n.02", "water_tower.n.01", "septic_tank.n.01",
    "canopy.n.01", "playhouse.n.01", "ski_tow.n.01", "offshore_rig.n.01", "windmill.n.02",
    "gristmill.n.01", "water_mill.n.01", "water_heater.n.01", "radio_telescope.n.01",
)  # fmt: skip
_BARRIER = ("barrier.n.01", "obstruction.n.01", "supporting_structure.n.01")
_POST = (
    "post.n.04", "upright.n.01", "rod.n.01", "streetlight.n.01", "lamppost.n.01", "flagpole.n.02",
)  # fmt: skip
_SIGN = (
    "sign.n.02", "signboard.n.01", "visual_signal.n.01", "parking_meter.n.01", "hydrant.n.02",
    "postbox.n.01", "mailbox.n.01", "park_bench.n.01", "telephone_booth.n.01", "notice_board.n.01",
    "bulletin_board.n.02", "call-board.n.01", "blinker.n.01",
)  # fmt: skip
_PLANT = ("plant.n.02", "plant_part.n.01", "covering.n.01", "vegetation.n.01")
_PERSON = ("person.n.01", "clothing.n.01")
_CAR = (
    "motor_vehicle.n.01", "wheel.n.01", "tire.n.01", "motor.n.01", "seat.n.04",
    "license_plate.n.01", "trunk_lid.n.01", "sidelight.n.01", "headlight.n.01", "taximeter.n.01",
    "trailer.n.03", "trailer.n.04", "camper_trailer.n.01", "recreational_vehicle.n.01",
    "bumper_jack.n.01", "radiator_hose.n.01",
)  # fmt: skip
_RAIL = (
    "car.n.02", "locomotive.n.01", "streetcar.n.01", "public_transport.n.01", "tramway.n.01",
    "rolling_stock.n.01",
)  # fmt: skip
_CYCLE = ("bicycle.n.01", "velocipede.n.01", "saddle.n.01")

# Class names of Cityscapes and CamVid, in lower case. Others stand for the first sense of the noun.
CLASSES = {
    "road": Rule(("road.n.01",), _GROUND),
    "sidewalk": Rule(("sidewalk.n.01",), _GROUND),
    "pavement": Rule(("sidewalk.n.01",), _GROUND),
    "building": Rule(("building.n.01",), _BUILT),
    "wall": Rule(("wall.n.01", "wall.n.07"), _BARRIER),
    "fence": Rule(("fence.n.01",), _BARRIER),
    "pole": Rule(("pole.n.01", "post.n.04"), _POST),
    "traffic light": Rule(("traffic_light.n.01",), _SIGN),
    "traffic sign": Rule(("street_sign.n.01", "signboard.n.01"), _SIGN),
    "signsymbol": Rule(("street_sign.n.01", "signboard.n.01", "traffic_light.n.01"), _SIGN),
    "vegetation": Rule(("plant.n.02", "vegetation.n.01"), _PLANT),
    "tree": Rule(("tree.n.01",), _PLANT),
    "terrain": Rule(("terrain.n.01", "land.n.04"), _GROUND),
    "sky": Rule(("sky.n.01",), ("cloud.n.02", "atmospheric_phenomenon.n.01")),
    "person": Rule(("person.n.01",), _PERSON),
    "pedestrian": Rule(("pedestrian.n.01", "person.n.01"), _PERSON),
    "rider": Rule(("rider.n.01", "rider.n.03"), _PERSON),
    "bicyclist": Rule(("cyclist.n.01", "bicycle.n.01"), (*_PERSON, *_CYCLE)),
    "car": Rule(("car.n.01",), _CAR),
    "truck": Rule(("truck.n.01",), _CAR),
    "bus": Rule(("bus.n.01",), (*_CAR, *_RAIL)),
    "train": Rule(("train.n.01",), _RAIL),
    "motorcycle": Rule(("motorcycle.n.01",), (*_CAR, *_CYCLE)),
    "bicycle": Rule(("bicycle.n.01",), _CYCLE),
}
